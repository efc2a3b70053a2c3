"""Run commands and talk to the person at the terminal.

In: argument lists. Out: their standard output, or a ClusterError that shows the command and what it said.
Never passes a command line through a shell, so that a path with a space stays one argument.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

# Debian keeps ip, iptables and nsenter where a plain user's PATH does not look.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
POLL_SECONDS = 0.1
SAY_AGAIN_SECONDS = 5.0


class ClusterError(Exception):
    """A message for the person at the terminal; the command ends with it."""


def say(text: str) -> None:
    """Report progress on stderr; stdout carries answers only."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def run(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 120.0) -> str:
    """Run a command to its end and return what it printed."""
    result = attempt(argv, stdin=stdin, timeout=timeout)
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip())[-2000:]
        raise ClusterError(f"`{shlex.join(argv)}` ended with status {result.returncode}: {said}")
    return result.stdout


def attempt(
    argv: Sequence[str], *, stdin: str | None = None, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a command whose failure the caller handles."""
    environment = {**os.environ, "PATH": PATH}
    try:
        return subprocess.run(
            argv, input=stdin or "", capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{shlex.join(argv)}` did not end within {timeout:.0f} s") from error


def wait_for(what: str, check: Callable[[], str | None], *, seconds: float) -> None:
    """Poll until `check` returns None; until then it returns what is still missing."""
    started = said = time.monotonic()
    while (missing := check()) is not None:
        now = time.monotonic()
        if now - started > seconds:
            raise ClusterError(f"{what}: not within {seconds:.0f} s: {missing}")
        if now - said > SAY_AGAIN_SECONDS:
            said = now
            say(f"waiting for {what}, {now - started:.0f} s: {missing}")
        time.sleep(POLL_SECONDS)
