"""Turn a `vllm serve` command line into a namespace, refusing what vLLM's own parser refuses.

In: arguments without the program name. Out: an argparse namespace with every vLLM flag (unset is
None) and every `--sim-*` flag. Never reads a file, the environment or the clock.

Like vLLM's parser it takes underscores for dashes, unambiguous prefixes, `-O3`, `--flag.key value`
for JSON flags, `1k` and `25.6K` for sizes, and `--no-x` for booleans.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from llmfleet_sim.flag_table import FLAG_TABLE

_COMMANDS = "chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot"
_USAGE = "vllm [-h] [-v]\n            {" + _COMMANDS + "}\n            ..."
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def human_readable_int(value: str) -> int:
    """Read 1024, 1k (1000), 1K (1024), 25.6k; a binary suffix takes no fraction."""
    text = value.strip()
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text)
    if not matched:
        return int(text)
    number, suffix = matched.groups()
    if suffix in _DECIMAL:
        return int(float(number) * _DECIMAL[suffix])
    if "." in number:
        raise argparse.ArgumentTypeError(
            f"Decimals are not allowed with binary suffixes like {suffix}. "
            f"Did you mean to use {number}{suffix.lower()} instead?"
        )
    return int(number) * _BINARY[suffix]


def human_readable_int_or_auto(value: str) -> int:
    """Read a size, or -1 and `auto` for "whatever fits"."""
    text = value.strip()
    if text == "-1" or text.lower() == "auto":
        return -1
    return human_readable_int(text)


def json_value(value: str) -> Any:
    """Read JSON; the word None is null, as for vLLM's optional flags."""
    return None if value in ("", "None") else json.loads(value)


json_value.__name__ = "loads"

_TYPES: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "size": human_readable_int,
    "size-or-auto": human_readable_int_or_auto,
    "json": json_value,
    "text": str,
}


class _Parser(argparse.ArgumentParser):
    """argparse with vLLM's one-line usage."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message as vLLM does, then leave with 2."""
        if message.startswith("unrecognized arguments:"):
            self.exit(2, f"usage: {_USAGE}\nvllm: error: {message}\n")
        self.exit(2, f"usage: vllm serve [model_tag] [options]\nvllm serve: error: {message}\n")


def table_rows(table: str = FLAG_TABLE) -> list[tuple[str, list[str], list[str]]]:
    """Give (kind, names, choices) for every flag of the table."""
    rows = []
    for line in table.strip().replace("\n    ", " ").splitlines():
        left, _, right = line.partition(" = ")
        kind, *names = left.split()
        rows.append((kind, names, right.split()))
    return rows


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of `vllm serve`, with the simulator's own flags in a group of their own."""
    parser = _Parser(prog="vllm serve", usage="vllm serve [model_tag] [options]")
    parser.add_argument("model_tag", nargs="?")
    for kind, names, choices in table_rows():
        _add(parser, kind, names, choices)
    _add_sim_flags(parser)
    return parser


def _add(parser: argparse.ArgumentParser, kind: str, names: Sequence[str], choices: Sequence[str]) -> None:
    """Add one flag of the table."""
    if kind == "switch":
        parser.add_argument(*names, action="store_true", default=None)
    elif kind == "bool":
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None)
    elif kind == "append":
        parser.add_argument(*names, action="append")
    else:
        bare = kind.rstrip("+?")
        nargs = kind[len(bare) :] or None
        read = _TYPES[bare]
        parser.add_argument(*names, type=read, nargs=nargs, choices=[read(c) for c in choices] or None)


def _add_sim_flags(parser: argparse.ArgumentParser) -> None:
    """Add the simulator's own flags."""
    sim = parser.add_argument_group("simulator")
    for name, (read, default, text) in SIM_FLAGS.items():
        sim.add_argument(name, type=read, default=default, help=text)


SIM_FLAGS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "--sim-vllm-version": (str, "0.32", "version to imitate: 0.32 (measured) or 0.33 (read, unverified)"),
    "--sim-load-seconds": (float, 0.2, "seconds from start, or rendezvous, to listening (default 0.2)"),
    "--sim-profile": (str, "llama-3.1-70b-fp8-h100-tp8", "step-time profile (default: Llama-3.1-70B FP8, 8 H100)"),
    "--sim-step-a": (float, None, "milliseconds of every step; overrides the profile"),
    "--sim-step-b": (float, None, "milliseconds per running request of a step"),
    "--sim-step-c": (float, None, "milliseconds per prefill token of a step"),
    "--sim-step-d": (float, None, "milliseconds per token of context of a step"),
    "--sim-kv-blocks": (int, 4096, "KV blocks (default 4096; --num-gpu-blocks-override wins)"),
    "--sim-output-tokens": (
        int,
        128,
        "mean natural answer length in tokens where the request sets no end (default 128)",
    ),
    "--sim-kv-transfer-us": (float, 8.0, "microseconds per token of a KV transfer (default 8)"),
    "--sim-teardown-scale": (float, 1.0, "factor on the measured times vLLM takes to fail and to go away (default 1)"),
    "--sim-sigterm-ends": (str, "auto", "how SIGTERM ends what runs: error, abort, silence, or auto (default auto)"),
    "--sim-admin-port": (int, 0, "port for faults on command, 0 = none (default 0)"),
    "--sim-admin-host": (str, "127.0.0.1", "address of the admin port (default 127.0.0.1)"),
    "--sim-seed": (int, 0, "seed of the text generator (default 0)"),
}


def parse_command_line(argv: Sequence[str]) -> argparse.Namespace:
    """Parse `[MODEL] [flags]`, all behind `serve`; argparse leaves the process on what it refuses."""
    return build_parser().parse_args(fold_dotted(dashed(move_model_first(argv))))


def move_model_first(argv: Sequence[str]) -> list[str]:
    """`--model X` becomes the positional one, wherever it stands."""
    args = list(argv)
    for at, arg in enumerate(args):
        if arg == "--model" and at + 1 < len(args):
            return [args[at + 1], *args[:at], *args[at + 2 :]]
        if arg.startswith("--model="):
            return [arg.removeprefix("--model="), *args[:at], *args[at + 1 :]]
    return args


def with_config_file(argv: Sequence[str], read: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Put the flags of `--config FILE` before those of the command line, which so win."""
    args = list(argv)
    if "--config" not in args:
        return args
    at = args.index("--config")
    if at + 1 >= len(args):
        raise ValueError("No config file specified! Please check your command-line arguments.")
    given = config_flags(read(args[at + 1]))
    args = [*args[:at], *args[at + 2 :]]
    model = args[:1] if args and not args[0].startswith("-") else []
    return [*model, *given, *args[len(model) :]]


def config_flags(values: Mapping[str, Any]) -> list[str]:
    """Turn a mapping into flags as vLLM does: true is the bare flag, false nothing, a list repeats values."""
    flags: list[str] = []
    for key, value in values.items():
        if isinstance(value, bool):
            flags += [f"--{key}"] if value else []
        elif isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        else:
            flags += [f"--{key}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return flags


def dashed(args: Sequence[str]) -> list[str]:
    """Underscores of flag names become dashes up to the first dot; -O3 is an optimization level."""
    out: list[str] = []
    for arg in args:
        if arg.startswith("--"):
            key, equals, value = arg.partition("=")
            head, dot, rest = key[2:].partition(".")
            out.append("--" + head.replace("_", "-") + dot + rest + equals + value)
        elif arg.startswith("-O") and arg != "-O":
            out += ["--optimization-level", arg[3:] if arg[2] == "=" else arg[2:]]
        else:
            out.append("--optimization-level" if arg == "-O" else arg)
    return out


def fold_dotted(args: Sequence[str]) -> list[str]:
    """`--flag.key.sub value` pairs become one `--flag {json}` at the end, as vLLM does."""
    plain: list[str] = []
    folded: dict[str, dict[str, Any]] = {}
    rest = iter(args)
    for arg in rest:
        key, equals, value = arg.partition("=")
        if not (key.startswith("-") and "." in key and not _is_number(key)):
            plain.append(arg)
            continue
        if not equals:
            value = next(rest, "")
        name, *path = key.split(".")
        _store(folded.setdefault(name, {}), path, value)
    for name, tree in folded.items():
        plain += [name, json.dumps(tree)]
    return plain


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-\d*\.?\d+", text) is not None


def _store(tree: dict[str, Any], path: Sequence[str], value: str) -> None:
    """Put the value at the path; a trailing + splits it at commas into a list."""
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if leaf.endswith("+"):
        tree.setdefault(leaf[:-1], []).extend(value.split(","))
    else:
        tree[leaf] = _scalar(value)


def _scalar(value: str) -> Any:
    """JSON if it parses, a size if it looks like one, else the text."""
    for read in (json.loads, human_readable_int):
        try:
            return read(value)
        except (ValueError, argparse.ArgumentTypeError):
            continue
    return value
