"""docs/proofs.md: every promise of charts and observability, every alert, panel, profile and recipe, with its proof.

In: proofs.yaml beside this file (promise -> tests), the rules and dashboards of the chart, the profiles, the recipes
and the tests of all of them. Out: the page as text. It runs nothing; a proof that does not exist ends the program.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = "charts/llmfleet-monitoring"
REALITY = "tests/dashboards/test_reality.py"
HEAD = """# What is proven, and by what

Written by `ci/generate` from the charts, the pages and the tests; a proof that does not exist is refused. `make
test-chart` runs the stages `charts`, `recipes`, `rules`, `dashboards`, `policies` and `profiles` (15 minutes on two
cores that were busy with other work), `ci/check STAGE` any other.
"""
TAIL = """## Not proven

* Engines of the production patterns are the simulator, GPUs and RDMA devices are figures in a node's status: nothing
  here says that real vLLM starts on real GPUs with these values. Real vLLM runs on processors only (stage `vllm`).
* Who enforces NetworkPolicies in the test is the local cluster's [own enforcer](local-cluster.md#policies). No network
  plug-in of a cloud or of another project was asked.
* How a Grafana draws the panels. The queries are asked of a Prometheus, the pictures are drawn from its answers.
* Kinds of other projects whose definitions are not to be had: [recipes](recipes/README.md#not-proven).
"""
# Stages of ci/check by the folder of a test; the longest prefix counts.
STAGES = {
    "tests/analysis": "charts",
    "tests/charts": "charts",
    "tests/crds": "crds",
    "tests/dashboards": "dashboards",
    "tests/images": "images",
    "tests/package": "images",
    "tests/policies": "policies",
    "tests/profiles": "profiles",
    "tests/recipes": "recipes",
    "tests/rules": "rules",
    "tests/unit": "unit",
}


def outputs(root: Path) -> dict[Path, str]:
    """The page."""
    sections = [HEAD, *promises(root), profiles(root), alerts(root), panels(root), recipes(root), TAIL]
    return {root / "docs" / "proofs.md": "\n".join(sections)}


def promises(root: Path) -> Iterator[str]:
    """One table for each part."""
    parts = yaml.safe_load((root / "ci/generate.d/proofs.yaml").read_text(encoding="utf-8"))
    for title, rows in parts.items():
        lines = [f"| {promise} | {proofs(root, found)} | {stages(found)} |" for promise, found in rows.items()]
        yield "\n".join([f"## {title}", "", "| promise | proof | stage |", "|---|---|---|", *lines, ""])


def proofs(root: Path, found: list[str]) -> str:
    """Links to tests, each looked up."""
    return ", ".join(proof(root, one) for one in found)


def proof(root: Path, written: str) -> str:
    """A link to one test file, folder or test."""
    path, _, name = written.partition("::")
    file = root / path
    if not file.exists() or (name and f"def {name}(" not in file.read_text(encoding="utf-8")):
        raise SystemExit(f"ci/generate.d/proofs.yaml: there is no {written}")
    label = name.removeprefix("test_").replace("_", " ") if name else path.removeprefix("tests/")
    return f"[{label}](../{path})"


def stages(found: list[str]) -> str:
    """The stages that run these proofs."""
    names = {STAGES["/".join(one.split("/")[:2])] for one in found}
    return ", ".join(f"`{name}`" for name in sorted(names))


def profiles(root: Path) -> str:
    """What each values file has been through."""
    installed = installed_profiles(root)
    rows = []
    for file in sorted((root / "values").glob("*.yaml")):
        where = installed.get(file.stem, "")
        rows.append(
            f"| [{file.stem}](../values/{file.name}) | [golden](../tests/charts/golden/{file.stem}.yaml) | {where} |"
        )
    lines = [
        "## Profiles",
        "",
        "Rendered, linted, given to a real apiserver and to two versions' schemas by stage `charts`, every one. Some",
        "are also installed on a real cluster, where `helm test` passes:",
        "",
        *("| profile | renders | installed by |", "|---|---|---|"),
        *rows,
        "",
    ]
    return "\n".join(lines)


def installed_profiles(root: Path) -> dict[str, str]:
    """Profiles that a test installs on a cluster, with a link to it."""
    ground = (root / "tests/profiles/ground.py").read_text(encoding="utf-8")
    link = "[profiles/test_patterns.py](../tests/profiles/test_patterns.py), stage `profiles`"
    found = dict.fromkeys(constant(ground, "PATTERNS"), link)
    demo = constant((root / "ci/demo").read_text(encoding="utf-8"), "VALUES")
    return found | {name: "[ci/demo](../ci/demo), stage `demo`" for names in demo.values() for name in names}


def constant(source: str, name: str) -> Any:
    """The value of a constant of a module, read and not run."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    raise SystemExit(f"no constant {name}")


def alerts(root: Path) -> str:
    """Each alert's case and runbook."""
    rows = []
    for rule in sorted((root / CHART / "rules/alerts").rglob("*.yaml"), key=lambda path: path.stem):
        case, page = f"tests/rules/cases/{rule.stem}.yaml", f"docs/runbooks/{rule.stem}.md"
        for path in (case, page):
            if not (root / path).exists():
                raise SystemExit(f"{rule.stem}: there is no {path}")
        rows.append(f"| `{rule.stem}` | [fires, quiet](../{case}) | [runbook](runbooks/{rule.stem}.md) |")
    head = [
        "## Alerts",
        "",
        f"{len(rows)} alerts. Each case is run by promtool on the rendered rules: it fires, it keeps quiet on",
        "something close, and another threshold turns both around",
        "([test_alerts.py](../tests/rules/test_alerts.py), stage `rules`).",
        "",
        *("| alert | case | what to do |", "|---|---|---|"),
    ]
    return "\n".join([*head, *rows, ""])


def panels(root: Path) -> str:
    """Each panel with what it reads."""
    excepted = constant((root / REALITY).read_text(encoding="utf-8"), "WITHOUT_DATA")
    parts = []
    total = 0
    for file in sorted((root / CHART / "dashboards").glob("*.json")):
        page = json.loads(file.read_text(encoding="utf-8"))
        found = [panel for panel in page["panels"] if panel["type"] != "row"]
        total += sum(len(panel["targets"]) for panel in found)
        rows = [f"| {panel['title']} | {len(panel['targets'])} | {metrics(panel)} |" for panel in found]
        parts += [f"### {page['title']}", "", "| panel | queries | metrics |", "|---|---|---|", *rows, ""]
    words = f"not asked: {', '.join(excepted)}" if excepted else "none is left out"
    head = [
        "## Panels",
        "",
        f"{total} queries. Each is asked of a Prometheus that scrapes a running fleet, for everything and for one",
        f"fleet alone, and must show data in its unit's range ([test_reality.py](../{REALITY}), stage `dashboards`);",
        f"{words}.",
        "",
    ]
    return "\n".join([*head, *parts])


def metrics(panel: dict[str, Any]) -> str:
    """The metrics that a panel reads."""
    text = " ".join(target["expr"] for target in panel["targets"])
    names = re.findall(r"(?<![\w:.\"])((?:llmfleet_|vllm:|DCGM_|kube_|redis_|http_)\w+)", text)
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def recipes(root: Path) -> str:
    """Each recipe, its files, and the tests that know it by name."""
    tests = {path.name: path.read_text(encoding="utf-8") for path in sorted((root / "tests/recipes").glob("test_*.py"))}
    rows = []
    for page in sorted((root / "docs/recipes").glob("*.md")):
        if page.name != "README.md":
            name = page.stem
            known = [file for file, text in tests.items() if re.search(rf"\"{name}[/\".]|\"recipes/{name}/", text)]
            files = len([path for path in page.with_suffix("").rglob("*") if path.is_file()])
            links = ", ".join(f"[{file}](../tests/recipes/{file})" for file in known)
            rows.append(f"| [{name}](recipes/{page.name}) | {files} | {links} |")
    head = [
        "## Recipes",
        "",
        "Every manifest and every values file of each is given to a real apiserver with the other projects' CRDs,",
        "every page shows its files as they are ([test_manifests.py](../tests/recipes/test_manifests.py),",
        "[test_pages.py](../tests/recipes/test_pages.py), stage `recipes`). What one of them promises beyond that:",
        "",
        *("| recipe | files | also held by |", "|---|---|---|"),
    ]
    return "\n".join([*head, *rows, ""])
