"""extraArgs refuses the flags that the operator sets in every spelling that vLLM's parser takes, and no other.

The parser's options are those of vLLM 0.32, recorded from its own parser; argparse itself says what a spelling
means, after the same rewriting that vLLM does (underscores become dashes up to the first dot).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from crd_schema import long_spellings

from crds.crd_objects import CLUSTERS, cluster
from fakes.apiserver import Apiserver

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: list[list[str]] = json.loads((Path(__file__).parent / "vllm_0.32_options.json").read_text())
OWNED = yaml.safe_load((ROOT / "charts/llmfleet-crds/schema/owned.yaml").read_text())["flags"]
BATCH = 64


def owned_options() -> set[str]:
    """Every option string of an owned flag, negations and short forms included."""
    shorts = [f"-{flag['short']}" for flag in OWNED if "short" in flag]
    return {*long_spellings(OWNED), *shorts}


class Ambiguous(Exception):
    """The parser would end the program."""


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        """Take an ambiguous prefix as what it is: an error of the engine's, no owned flag."""
        raise Ambiguous(message)


@cache
def parser() -> argparse.ArgumentParser:
    """argparse with vLLM's options; every option may have a value, so that no spelling fails for lack of one."""
    made = Parser(add_help=False)
    for number, options in enumerate(OPTIONS):
        made.add_argument(*options, dest=str(number), nargs="?", const="set")
    return made


def meaning(spelling: str) -> list[str]:
    """The option strings of the flag that vLLM takes this argument for; empty for no flag or an ambiguous one."""
    key, *value = spelling.split("=", 1)
    if key.startswith("--"):
        key = re.sub(r"(?<=--)[^.]*", lambda found: found.group(0).replace("_", "-"), key, count=1)
    key = key.split(".")[0]
    try:
        parsed, _ = parser().parse_known_args(["=".join([key, *value])])
    except Ambiguous:
        return []
    return next((OPTIONS[int(dest)] for dest, given in vars(parsed).items() if given is not None), [])


def spellings(option: str) -> Iterable[str]:
    """Prefixes, underscores, dots and '=' of one option, whether the parser takes them or not."""
    start = 3 if option.startswith("--") else 2
    for end in range(start, len(option) + 1):
        prefix = option[:end]
        yield from (prefix, f"{prefix}=1", f"{prefix}.key=1")
        if option.startswith("--"):
            yield "--" + prefix[2:].replace("-", "_")
    if re.fullmatch("-[a-z]", option):
        yield from (f"{option}4", f"{option}abc", f"{option}=4")


def refused(server: Apiserver, arguments: Sequence[str]) -> set[str]:
    """Which of the arguments the apiserver refuses; each names its own place in the error."""
    found: set[str] = set()
    for start in range(0, len(arguments), BATCH):
        batch = list(arguments[start : start + BATCH])
        answer = server.call("POST", CLUSTERS, cluster({"inferenceArgs.extraArgs": batch}), params={"dryRun": "All"})
        found |= {batch[index_of(cause)] for cause in answer.body.get("details", {}).get("causes", [])}
    return found


def index_of(cause: dict[str, Any]) -> int:
    """spec.inferenceArgs.extraArgs[3] -> 3."""
    found = re.fullmatch(r"spec\.inferenceArgs\.extraArgs\[(\d+)\]", cause["field"])
    assert found, cause
    return int(found.group(1))


def test_every_spelling_of_an_owned_flag_is_refused(server: Apiserver) -> None:
    owned = owned_options()
    every = sorted({spelling for option in owned for spelling in spellings(option)})
    dangerous = {spelling for spelling in every if owned & set(meaning(spelling))}
    assert len(dangerous) > 500
    assert dangerous - refused(server, every) == set()


def test_every_other_flag_of_the_engine_is_accepted(server: Apiserver) -> None:
    owned = owned_options()
    others = [option for options in OPTIONS if not owned & set(options) for option in options]
    assert len(others) > 300
    arguments = [
        form for option in others for form in (option, f"{option}=1", option.replace("-", "_").replace("__", "--"))
    ]
    assert refused(server, arguments) == set()


def test_what_is_no_flag_is_accepted(server: Apiserver) -> None:
    values = [
        "",
        "-",
        "--",
        "-1",
        "0",
        "value",
        "a=--port",
        '{"port": 1}',
        "é",
        "--port-like",
        "--hostname",
        "-O3",
        "-cc.level=3",
    ]
    assert refused(server, values) == set()


@pytest.mark.parametrize(
    "argument",
    [
        "--tensor-par",
        "--por",
        "--kv-tr.kv_connector",
        "--config",
        "--spec-tokens",
        "--device-mem",
        "-t",
        "-n2",
        "-q=fp8",
    ],
)
def test_a_refused_flag_says_where_to_write_it_instead(server: Apiserver, argument: str) -> None:
    spec = cluster({"inferenceArgs.extraArgs": ["--max-log-len=0", argument]})
    answer = server.call("POST", CLUSTERS, spec, params={"dryRun": "All"})
    assert answer.status == 422
    assert f'spec.inferenceArgs.extraArgs[1]: Invalid value: "{argument}"' in answer.message
    assert "use the typed field instead (table of owned flags in docs/reference/llmcluster.md)" in answer.message


def test_every_owned_flag_is_one_that_the_engine_has() -> None:
    known = {option for options in OPTIONS for option in options}
    assert owned_options() <= known


def test_every_spelling_of_one_flag_is_owned_or_none() -> None:
    owned = owned_options()
    split = [options for options in OPTIONS if owned & set(options) and not set(options) <= owned]
    assert split == []
