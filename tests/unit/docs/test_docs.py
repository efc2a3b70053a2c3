"""What the documents say exists, exists; what users meet by name is documented.

Links, `make` targets, commands, variables, metrics, reasons, files of ARCHITECTURE.md, examples of LLMClusters.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmfleet import cli
from llmfleet.api.parse import parse_spec
from llmfleet.api.reasons import DecisionReason, Reason
from llmfleet.telemetry import AutoscalerMetrics, JobGauges, JobMetrics, OperatorMetrics, RouterGauges, RouterMetrics

ROOT = Path(__file__).resolve().parents[3]
FENCE = re.compile(r"^(```+|~~~+)(.*?)^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def documents() -> list[Path]:
    """Every Markdown file git knows or will know: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"],
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return sorted(path for path in set(paths) if path.is_file() and ROOT in path.resolve().parents)


PAGES = documents()
ALL = "\n".join(page.read_text() for page in PAGES)


def prose(text: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The fragment of each heading, as Git hosts make it."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> Iterator[str]:
    """Links into the repository that lead nowhere, or to a heading that is not there."""
    for target in LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file.read_text())):
            yield target


def row_of(page: str, word: str) -> str:
    """The table row that begins with this word in code."""
    found = re.search(rf"^\| `{re.escape(word)}`[^|]*\|.*$", (ROOT / page).read_text(), re.MULTILINE)
    return found[0] if found else ""


def test_the_documents_are_found() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/README.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` heading\n[x](none.md) [y](page.md#a-b-heading) [z](#nowhere) [w](https://example.com/none)"
    )
    assert list(broken_links(page)) == ["none.md", "#nowhere"]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    missing = [
        str(page.relative_to(ROOT / "docs"))
        for page in PAGES
        if ROOT / "docs" in page.parents and page != ROOT / "docs/README.md"
        if f"({page.relative_to(ROOT / 'docs')})" not in index and not in_own_index(page)
    ]
    assert missing == []


def in_own_index(page: Path) -> bool:
    """A folder of many pages has an index of its own, which stands in the first."""
    index = page.parent / "README.md"
    return (
        page != index and index != ROOT / "docs/README.md" and index.exists() and f"({page.name})" in index.read_text()
    )


# What a program says of a server that was not there when the page was written; prose may speak of it.
AWAY = re.compile(r"connection refused|Errno 111|Max retries exceeded|NewConnectionError", re.IGNORECASE)


def samples_of_nobody(text: str) -> list[str]:
    """Lines of samples that show that nobody answered; prose is left out."""
    return [line for _, block in FENCE.findall(text) for line in block.splitlines() if AWAY.search(line)]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT / "docs"], ids=lambda page: page.stem)
def test_no_sample_was_recorded_while_nobody_listened(page: Path) -> None:
    assert samples_of_nobody(page.read_text()) == []


def test_a_sample_that_was_recorded_while_nobody_listened_is_found() -> None:
    sample = "$ llmfleet top --url localhost:1\n! router: [Errno 111] Connection refused"
    assert len(samples_of_nobody(f"`connection refused` is a network policy.\n```\n{sample}\n```\n")) == 1


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_make_target_that_is_named_exists() -> None:
    code = "\n".join([*re.findall(r"`([^`\n]+)`", ALL), *(block[1] for block in FENCE.findall(ALL))])
    named = set(re.findall(r"(?:^|\$ |&& |`)make ([a-z][a-z0-9-]*)", code, re.MULTILINE))
    assert {"demo", "test", "push", "images"} <= named
    assert named - make_targets() == set()


def test_every_make_target_but_the_help_is_named() -> None:
    unnamed = {target for target in make_targets() if f"make {target}" not in ALL}
    assert unnamed == set()


@pytest.mark.parametrize("command", sorted(cli.ROLES))
def test_every_command_is_documented(command: str) -> None:
    assert row_of("docs/reference/settings.md", f"llmfleet {command}")


def variables() -> set[str]:
    """Every LLMFLEET_ variable that code, images or scripts of this repository name."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "-hoE", r"\bLLMFLEET_[A-Z_]*[A-Z]\b", "--", "controllers", "ci", "images"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(listing.stdout.split())


def test_every_variable_is_documented() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert "LLMFLEET_RANK" in variables()
    assert {name for name in variables() if f"`{name}`" not in page} == set()


def test_every_documented_variable_is_read_somewhere() -> None:
    known = variables() | {"LLMFLEET_TEST_ENGINE"}
    assert set(re.findall(r"`(LLMFLEET_[A-Z_]*[A-Z])`", ALL)) - known == set()


def metric_names() -> set[str]:
    """Names as Prometheus stores them, of every family that telemetry.py defines."""
    gauges = RouterGauges(
        connections=0, max_connections=0, draining=False, generation=0, document_age_seconds=0, endpoints=()
    )
    families = [*RouterMetrics(lambda: gauges).collect(), *OperatorMetrics().registry.collect()]
    families += AutoscalerMetrics().registry.collect()
    families += JobMetrics(lambda: JobGauges(running={}, up=True, refused=False, failures=0, reconnects=0)).collect()
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_every_metric_is_documented_and_no_other() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    rows = set(re.findall(r"^\| `(llmfleet_\w+)` \|", page, re.MULTILINE))
    assert {"llmfleet_router_requests_total", "llmfleet_operator_leader"} <= rows
    assert rows == metric_names()


def test_every_metric_that_is_named_anywhere_exists() -> None:
    suffixes = ("", "_bucket", "_count", "_sum")
    known = {name + suffix for name in metric_names() for suffix in suffixes}
    components = "router|queue_jobs|queue_redis|operator|route|autoscaler"
    named = set(re.findall(rf"(?<![\w:])llmfleet_(?:{components})_\w+[a-z](?![\w*])", ALL))
    assert named - known == set()


def test_every_engine_metric_that_is_named_is_one_that_vllm_was_seen_to_export() -> None:
    recorded = json.loads((ROOT / "tests/conformance/recorded/metrics.json").read_text())
    known = {sample.partition("{")[0] for family in recorded.values() for sample in family["samples"]} | set(recorded)
    named = set(re.findall(r"`(vllm:\w+)`|\((vllm:\w+)\)", (ROOT / "docs/glossary.md").read_text()))
    assert {name for pair in named for name in pair if name} - known == set()
    assert "vllm:num_requests_waiting" in known


@pytest.mark.parametrize("reason", list(Reason), ids=str)
def test_every_reason_is_explained_with_what_to_do(reason: Reason) -> None:
    cells = [cell.strip() for cell in row_of("docs/reference/reasons.md", str(reason)).strip("|").split("|")]
    assert len(cells) == 4, cells
    assert all(len(cell) > 3 for cell in cells)


@pytest.mark.parametrize("reason", list(DecisionReason), ids=str)
def test_every_reason_of_a_decision_is_explained(reason: DecisionReason) -> None:
    cells = [cell.strip() for cell in row_of("docs/autoscaler.md", str(reason)).strip("|").split("|")]
    assert len(cells) == 2, cells
    assert len(cells[1]) > 10


def test_no_other_reason_is_explained() -> None:
    page = (ROOT / "docs/reference/reasons.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert rows == {str(reason) for reason in Reason}


def test_reasons_that_are_trouble_are_marked() -> None:
    from llmfleet.deploy.decide import TROUBLES

    marked = {reason for reason in Reason if "⚠" in row_of("docs/reference/reasons.md", str(reason))}
    assert marked == TROUBLES


def architecture_files() -> list[str]:
    """What ARCHITECTURE.md names as a file, a folder or a path."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    files = re.findall(r"(?<![\w<.*/-])((?:[\w.-]+/)*[\w-]+\.(?:py\.txt|py|txt|sh|toml|yaml|svg|md))\b", text)
    folders = re.findall(r"`((?:tests|docs|charts|ci|controllers|deploy|route|router|kube)/[\w/.-]*)`", text)
    return sorted(set(files) | set(folders))


PLACES = ("", *(f"controllers/llmfleet{part}" for part in ("", "/deploy", "/route", "/router")))


def is_there(name: str) -> bool:
    """At its path from one of the places the page speaks of; a bare name anywhere in the product."""
    if any((ROOT / place / name).exists() for place in PLACES):
        return True
    return "/" not in name and any((ROOT / "controllers/llmfleet").rglob(name))


@pytest.mark.parametrize("name", architecture_files())
def test_every_file_that_the_architecture_names_exists(name: str) -> None:
    assert is_there(name)


def test_the_architecture_names_files_and_stays_short() -> None:
    names = {name.removeprefix("deploy/scripts/") for name in architecture_files()}
    assert {"gate.py.txt", "tests/unit/deploy/test_crashes.py", "fleet.py"} <= names
    assert not is_there("tests/unit/deploy/test_nothing.py")
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 200


def test_every_invariant_names_a_test_or_says_that_none_holds_it_yet() -> None:
    section = (ROOT / "ARCHITECTURE.md").read_text().split("## Invariants")[1]
    rows = re.findall(r"^\| (\d+) \|[^|]+\|([^|]+)\|$", section, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 14))
    for number, holders in rows:
        assert re.search(r"`tests/\S+\.py`", holders) or "not yet held: arrives with" in holders, number


def examples() -> Iterator[tuple[str, dict[str, object]]]:
    for page in PAGES:
        for _, block in FENCE.findall(page.read_text()):
            language, _, body = block.partition("\n")
            if language.strip() != "yaml" or "kind: LLMCluster\n" not in body:
                continue
            for obj in yaml.safe_load_all(body):
                yield f"{page.relative_to(ROOT)}:{obj['metadata']['name']}", obj


EXAMPLES = dict(examples())


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_an_instance_parses(name: str) -> None:
    assert parse_spec(EXAMPLES[name]["spec"]).model
