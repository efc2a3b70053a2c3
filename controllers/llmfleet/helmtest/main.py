"""`llmfleet helm-test CHECK`: walk one path through a running release and say what was seen.

In: the address of the client Service. Out: readable lines on stdout; exit 0 passed, 1 failed, 2 wrong use. It changes
nothing, holds no credential of the cluster and stores nothing.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import click
import requests

from llmfleet.helmtest import checks
from llmfleet.helmtest.checks import Verdict

RETRY_SECONDS: Final = 1.0
ADMIN_PATHS: Final = ("/metrics", "/fleet", "/drain")
PROMPT: Final = "Say hello to the fleet in one sentence."
MAX_TOKENS: Final = 16
JOB_SECONDS: Final = 60.0  # a job may wait that long by default


def service_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Accept http(s)://host[:port] and nothing after it."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise click.BadParameter(f"{value!r} is no address: write it as http://HOST:PORT")
    return value.rstrip("/")


URL = click.option(
    "--url", required=True, callback=service_url, help="Address of the client Service, http://HOST:PORT."
)
MODEL = click.option("--model", required=True, help="Model name as a client asks for it.")
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds one request may take.",
)
PATIENCE = click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds to go on trying while the fleet is still starting.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check a running release from inside the cluster; `helm test` runs these."""


@command.command()
@URL
@MODEL
@TIMEOUT
@PATIENCE
def models(url: str, model: str, timeout: float, patience: float) -> None:
    """The router lists the model."""

    def look() -> Verdict:
        answer = requests.get(f"{url}/v1/models", timeout=timeout)
        return checks.judge_models(answer.status_code, answer.text, model)

    run(f"GET {url}/v1/models", look, patience)


@command.command()
@URL
@MODEL
@TIMEOUT
@PATIENCE
def chat(url: str, model: str, timeout: float, patience: float) -> None:
    """A chat completion comes back whole."""

    def ask() -> Verdict:
        answer = requests.post(f"{url}/v1/chat/completions", json=chat_body(model), timeout=timeout)
        return checks.judge_chat(answer.status_code, answer.text)

    run(f"POST {url}/v1/chat/completions, model {model}", ask, patience)


@command.command()
@URL
@MODEL
@TIMEOUT
@PATIENCE
def stream(url: str, model: str, timeout: float, patience: float) -> None:
    """A chat completion streams: two chunks or more, usage, [DONE]."""
    body = chat_body(model) | {"stream": True, "stream_options": {"include_usage": True}}

    def ask() -> Verdict:
        with requests.post(f"{url}/v1/chat/completions", json=body, timeout=timeout, stream=True) as answer:
            if answer.status_code != 200:
                return checks.judge_chat(answer.status_code, answer.text)
            # Bytes, because text would be split at U+2028, which JSON may carry raw.
            return checks.judge_stream([line.decode() for line in answer.iter_lines()])

    run(f"POST {url}/v1/chat/completions, model {model}, streamed", ask, patience)


@command.command()
@URL
@MODEL
@TIMEOUT
@PATIENCE
def jobs(url: str, model: str, timeout: float, patience: float) -> None:
    """A request that is stored is run, and its answer can be read."""
    stored: list[str] = []

    def store() -> Verdict:
        headers = {"Prefer": "respond-async"}
        answer = requests.post(f"{url}/v1/chat/completions", json=chat_body(model), headers=headers, timeout=timeout)
        location = answer.headers.get("Location", "")
        stored[:] = [location]
        return checks.judge_accepted(answer.status_code, location, answer.text)

    def fetch() -> Verdict:
        answer = requests.get(f"{url}{stored[0]}/result", params={"wait": "10"}, timeout=timeout)
        return checks.judge_result(answer.status_code, answer.text)

    run(f"POST {url}/v1/chat/completions, model {model}, Prefer: respond-async", store, patience)
    run(f"GET {url}/v1/requests/.../result", fetch, max(patience, JOB_SECONDS))


@command.command("admin-closed")
@URL
@click.option(
    "--admin-port",
    type=click.IntRange(1, 65535),
    default=9090,
    show_default=True,
    help="Port the router's admin API listens on in its pods.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds until a port that does not answer counts as closed.",
)
@PATIENCE
def admin_closed(url: str, admin_port: int, timeout: float, patience: float) -> None:
    """The admin API cannot be reached through the Service clients use."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def knock() -> Verdict:
        return checks.judge_closed_port(admin_port, answers(host, port, timeout), answers(host, admin_port, timeout))

    run(f"connect to {host}, port {admin_port}", knock, patience)
    for path in ADMIN_PATHS:
        run(f"GET {url}{path}", partial(look_for, url, path, timeout), patience)


def look_for(url: str, path: str, timeout: float) -> Verdict:
    """Ask the client port for a path of the admin port."""
    return checks.judge_hidden_path(path, requests.get(f"{url}{path}", timeout=timeout).status_code)


def answers(host: str, port: int, timeout: float) -> bool:
    """Whether a TCP connection is accepted."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def chat_body(model: str) -> dict[str, Any]:
    """The smallest question that needs every part of the path."""
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS}


def run(title: str, check: Callable[[], Verdict], patience: float) -> None:
    """Check until it passes, fails for good, or patience ends; print what was seen and leave on failure."""
    click.echo(title)
    started = time.monotonic()
    said = ""
    while True:
        verdict = attempt(check)
        waited = time.monotonic() - started
        if verdict.passed or not verdict.later or waited >= patience:
            break
        if verdict.problem != said:
            said = verdict.problem
            click.echo(f"  wait  {said}")
        time.sleep(RETRY_SECONDS)
    for fact in verdict.facts:
        click.echo(f"  ok    {fact}")
    if not verdict.passed:
        click.echo(f"  FAIL  {verdict.problem} (after {waited:.1f} s)")
        sys.exit(1)


def attempt(check: Callable[[], Verdict]) -> Verdict:
    """One try; a router that cannot be reached, or hangs up, is a finding and not a traceback."""
    try:
        return check()
    except (requests.ConnectionError, requests.Timeout) as error:
        return checks.failed(f"no answer: {cause(error)}", later=True)
    except requests.RequestException as error:
        return checks.failed(f"the answer broke off: {cause(error)}")


def cause(error: BaseException) -> str:
    """The innermost reason in words; what wraps it repeats the address and says no more."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return checks.shorten(words or type(error).__name__, width=120)
