"""The command line: `vllm serve MODEL [flags]`, `llmfleet-sim serve MODEL [flags]`, `--version`.

In: argv. Out: a running engine process and its exit code. Imports as little as it can before it knows
that it has to serve.
"""

import sys
from collections.abc import Sequence

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
    from uuid import uuid4

    from llmfleet_sim.config import build_config
    from llmfleet_sim.flags import parse_command_line
    from llmfleet_sim.settings import read_environment

    flags = parse_command_line(args)
    try:
        config = build_config(flags, read_environment(), new_id=str(uuid4()))
    except ValueError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        return 2
    from llmfleet_sim.main import run

    return run(config)
