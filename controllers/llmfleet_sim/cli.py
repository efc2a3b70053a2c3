"""The command line: `vllm serve MODEL [flags]`, `llmfleet-sim serve MODEL [flags]`, `--version`.

In: argv. Out: a running engine process and its exit code. Imports as little as it can before it knows
that it has to serve.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HELP = """usage: vllm serve [model_tag] [options]

A simulated engine with vLLM's flags, API and metrics. --help after `serve` lists every flag.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run; the exit code is the process's."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in ("-v", "--version"):
        print("0.32.0")
    elif not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
    elif args[0] != "serve":
        print(f"vllm: error: argument subparser: invalid choice: {args[0]!r} (choose from 'serve')", file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(_serve(args[1:]))


def _serve(args: Sequence[str]) -> int:
    from llmfleet_sim.config import build_config
    from llmfleet_sim.flags import parse_command_line, with_config_file
    from llmfleet_sim.settings import read_environment

    try:
        flags = parse_command_line(with_config_file(args, _read_yaml))
        config = build_config(flags, read_environment(), new_id=_engine_id())
    except ValueError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        return 2
    from llmfleet_sim.main import run

    return run(config)


def _engine_id() -> str:
    """Make a random id in the form of a UUID; the module uuid would cost a tenth of the start-up."""
    text = os.urandom(16).hex()
    return "-".join((text[:8], text[8:12], "4" + text[13:16], "a" + text[17:20], text[20:]))


def _read_yaml(path: str) -> Mapping[str, Any]:
    """Read the file of --config; PyYAML is only loaded for it."""
    if not path.endswith((".yaml", ".yml")):
        raise ValueError(f"Config file must be of a yaml/yml type. {path} supplied")
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: {error}") from None
    return values if isinstance(values, dict) else {}
