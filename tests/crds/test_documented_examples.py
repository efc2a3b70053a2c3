"""The reference pages hold what they promise: every example applies, every transcript is what kubectl prints."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import make_reference
import pytest
import yaml

from fakes.apiserver import Apiserver, tool

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("llmcluster*.md"))
RESOURCES = {
    "LLMCluster": "apis/serving.ai/v1alpha1/namespaces/default/llmclusters",
    "LLMClusterAutoscaler": "apis/serving.ai/v1alpha1/namespaces/default/llmclusterautoscalers",
    "HorizontalPodAutoscaler": "apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
}


def blocks(page: Path, fence: str) -> list[str]:
    """Every fenced block of one kind."""
    return re.findall(rf"^```{re.escape(fence)}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def examples(page: Path) -> list[dict[str, Any]]:
    """Every object of every example."""
    return [made for block in blocks(page, "yaml") for made in yaml.safe_load_all(block)]


EXAMPLES = [made for page in PAGES for made in examples(page)]


def transcript(page: Path) -> list[tuple[str, str]]:
    """Each command with what it printed."""
    text = "\n".join(blocks(page, "console"))
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", text, re.MULTILINE)
    return [(command, output.strip()) for command, output in found]


@pytest.mark.apiserver
@pytest.mark.parametrize("made", EXAMPLES, ids=lambda made: f"{made['kind']} {made['metadata']['name']}")
def test_every_example_applies(server: Apiserver, made: dict[str, Any]) -> None:
    answer = server.apply(f"/{RESOURCES[made['kind']]}/{made['metadata']['name']}", made, manager="docs")
    assert answer.status in (200, 201), answer.message
    assert answer.body["metadata"]["managedFields"][0]["manager"] == "docs"


@pytest.mark.apiserver
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_transcript_is_what_kubectl_prints(server: Apiserver, page: Path, tmp_path: Path) -> None:
    for made in examples(page):
        server.apply(f"/{RESOURCES[made['kind']]}/{made['metadata']['name']}", made, manager="docs")
    (tmp_path / "wrong.yaml").write_text("---\n".join(blocks(page, "yaml wrong.yaml")))
    path = f"{tool('kubectl').parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(server.kubeconfig)}
    assert transcript(page)
    for command, expected in transcript(page):
        run = ["bash", "-c", f"{command} 2>&1"]
        done = subprocess.run(run, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        assert lines(done.stdout) == lines(expected), command


def lines(text: str) -> list[str]:
    """Sorted, as the apiserver gives the errors of one object in no fixed order."""
    return sorted(line.rstrip() for line in text.strip().splitlines())


def test_there_are_examples_of_both_kinds() -> None:
    kinds = [made["kind"] for made in EXAMPLES]
    assert kinds.count("LLMCluster") >= 8
    assert kinds.count("LLMClusterAutoscaler") >= 5


def test_the_generated_parts_are_up_to_date() -> None:
    assert {page: page.read_text() for page in PAGES} == make_reference.outputs(ROOT)


@pytest.mark.parametrize("part", ["spec", "status", "columns", "owned flags", "owned variables"])
def test_every_generated_part_has_its_place(part: str) -> None:
    assert f"<!-- generated: {part} -->" in PAGES[0].read_text()


def test_every_field_of_the_source_is_in_the_table() -> None:
    source = yaml.safe_load((ROOT / "charts/llmfleet-crds/schema/llmcluster.yaml").read_text())
    page = (ROOT / "docs/reference/llmcluster.md").read_text()
    assert [name for name in source["spec"]["properties"] if f"| `{name}` |" not in page] == []
    assert [name for name in source["status"]["properties"] if f"| `{name}` |" not in page] == []
