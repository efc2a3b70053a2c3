"""Runbooks: four sections each; Prometheus understands every expression in them, and every metric exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import ROOT
from rules.names import unknown
from rules.rules import RUNBOOKS, promtool

PAGES = sorted(RUNBOOKS.glob("Llmfleet*.md"))
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
# Names of metrics that people know from elsewhere and ask for.
ASKED = """
queue_length redis_queue_length request_rate error_rate ttft_p95 tpot_p95 total_latency tokens_per_second
requests_per_second gpu_utilization gpu_memory_used cpu_percent prefill_latency prefill_queue_depth kv_transfer_time
decode_latency speculative_accuracy decode_tps llm_ttft_seconds llm_tpot_seconds DCGM_ForceUtilization
vllm_num_requests_waiting vllm_time_to_first_token_p95 vllm_inference_latency_seconds vllm_gpu_utilization_percent
vllm_gpu_utilization_percentage vllm_requests_per_second vllm_request_latency_seconds vllm_tokens_per_second
model_load_seconds nvidia_gpu_memory gpu_cache_usage_perc
"""
# Pages with PromQL of ours; other pages of docs/ have none.
TEXTS = {path.stem: path.read_text() for path in [*PAGES, ROOT / "docs" / "metrics.md", ROOT / "docs" / "alerts.md"]}


def sections(text: str) -> dict[str, str]:
    """What stands under each heading."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def expressions(text: str) -> list[str]:
    """Each line of each PromQL block, and the second column of the table that begins with a name and a query."""
    blocks = re.findall(r"^```promql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    table = re.search(r"^\| name \| query \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    queries = re.findall(r"^\|[^|]+\| `([^`]+)` \|", table[1], re.MULTILINE) if table else []
    return [line for block in blocks for line in block.splitlines() if line.strip()] + queries


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
def test_a_runbook_says_what_it_means_whom_it_hurts_how_to_look_and_what_to_do(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n")
    found = sections(text)
    assert list(found) == SECTIONS
    assert all(len(part.split()) >= 4 for part in found.values())
    assert "```sh\n" in found["Diagnosis"] or "```promql\n" in found["Diagnosis"]
    assert "\n* " in found["Mitigation"]


def test_most_runbooks_have_commands_for_the_cluster_too() -> None:
    with_shell = [page for page in PAGES if "```sh\n" in page.read_text()]
    assert len(with_shell) > 0.8 * len(PAGES)


def test_every_expression_in_the_pages_is_understood(tmp_path: Path) -> None:
    found = [(page, text) for page, whole in TEXTS.items() for text in expressions(whole)]
    assert len(found) > 100
    group = [{"record": f"docs:{page}:{number}".lower(), "expr": text} for number, (page, text) in enumerate(found)]
    path = tmp_path / "docs.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": group}]}))
    done = promtool("check", "rules", "--lint=none", path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_every_metric_in_the_expressions_of_a_page_exists(page: str) -> None:
    assert {text: names for text in expressions(TEXTS[page]) if (names := unknown(text))} == {}


def test_runbooks_that_send_to_another_page_name_one_that_exists() -> None:
    for page in PAGES:
        linked = set(re.findall(r"\]\((Llmfleet\w+)\.md\)", page.read_text()))
        assert linked <= {other.stem for other in PAGES}, page.stem
        assert page.stem not in linked


@pytest.mark.parametrize("name", ASKED.split())
def test_a_name_that_people_ask_for_leads_to_a_query(name: str) -> None:
    rows = re.findall(r"^\|([^|]*)\| `([^`]+)` \|", TEXTS["metrics"], re.MULTILINE)
    found = [query for names, query in rows if re.search(rf"(?<!\w){name}(?!\w)", names)]
    assert found
    assert all(query in expressions(TEXTS["metrics"]) for query in found)


def paths_of(values: dict[str, Any], before: str = "") -> Iterator[str]:
    """Every key of the chart's values, by its path."""
    for key, value in values.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths_of(value, f"{before}{key}.")


def test_every_setting_that_a_runbook_names_is_a_value_or_stands_in_the_reference() -> None:
    values = yaml.safe_load((ROOT / "charts/llmfleet-monitoring/values.yaml").read_text())
    pages = [ROOT / "docs" / name for name in ("router.md", "jobs.md", "disaggregation.md")]
    pages += [*(ROOT / "docs/reference").glob("*.md"), *(ROOT / "charts").glob("llmfleet-*/README.md")]
    reference = "\n".join(page.read_text() for page in pages)
    known = set(paths_of(values)) | set(re.findall(r"`(?:spec\.|fleet\.)?([A-Za-z]+(?:\.[A-Za-z]+)+)", reference))
    prose = "\n".join(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES)
    named = set(re.findall(r"`(?:spec\.|router\.settings\.)?([a-z][A-Za-z]+(?:\.[A-Za-z]+)+)(?::[^`]*)?`", prose))
    assert len(named) > 20
    assert named - known == set()
