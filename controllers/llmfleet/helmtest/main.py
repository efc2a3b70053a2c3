"""`llmfleet helm-test CHECK`: walk one path through a running release and say what was seen.

In: the address of the client Service, and where the router asks for one a file with an API key. Out: readable lines on
stdout, never the key; exit 0 passed, 1 failed, 2 wrong use. It changes nothing, holds no credential of the cluster and
stores nothing.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import click
import requests

from llmfleet.helmtest import checks
from llmfleet.helmtest.checks import Verdict

RETRY_SECONDS: Final = 1.0
ADMIN_PATHS: Final = ("/metrics", "/fleet", "/drain")
PROMPT: Final = "Say hello to the fleet in one sentence."
MAX_TOKENS: Final = 16
JOB_SECONDS: Final = 60.0  # a job may wait that long by default
NO_KEY: Final = "sk-helm-test-that-nobody-was-given"

Headers = dict[str, str]


def service_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Accept http(s)://host[:port] and nothing after it."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise click.BadParameter(f"{value!r} is no address: write it as http://HOST:PORT")
    return value.rstrip("/")


def page_url(_context: click.Context, _parameter: click.Parameter, value: str) -> SplitResult:
    """Accept http://host:port/path."""
    parts = urlsplit(value)
    if parts.scheme != "http" or not parts.hostname or not parts.port or not parts.path:
        raise click.BadParameter(f"{value!r} is no page: write it as http://HOST:PORT/metrics")
    return parts


def bearer(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Headers:
    """Read the key that requests are sent with; line ends around it do not count."""
    if not value:
        return {}
    try:
        key = Path(value).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value} cannot be read: {cause(error)}") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise click.BadParameter(f"{value} holds no API key: write one line without spaces into the Secret")
    return {"Authorization": f"Bearer {key}"}


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
KEY = click.option("--key-file", "headers", callback=bearer, help="File with the API key to send; none without it.")
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
@click.option("--model", required=True, multiple=True, help="Model name as a client asks for it; may be repeated.")
@KEY
@TIMEOUT
@PATIENCE
def models(url: str, model: tuple[str, ...], headers: Headers, timeout: float, patience: float) -> None:
    """Every model is listed."""

    def look() -> Verdict:
        answer = requests.get(f"{url}/v1/models", headers=headers, timeout=timeout)
        return checks.judge_models(answer.status_code, answer.text, model)

    run(f"GET {url}/v1/models", look, patience)


@command.command()
@URL
@MODEL
@KEY
@TIMEOUT
@PATIENCE
def chat(url: str, model: str, headers: Headers, timeout: float, patience: float) -> None:
    """A chat completion comes back whole."""

    def ask() -> Verdict:
        return ask_chat(url, model, headers, timeout)

    run(f"POST {url}/v1/chat/completions, model {model}", ask, patience)


@command.command()
@URL
@MODEL
@KEY
@TIMEOUT
@PATIENCE
def stream(url: str, model: str, headers: Headers, timeout: float, patience: float) -> None:
    """A chat completion streams: two chunks or more, usage, [DONE]."""
    body = chat_body(model) | {"stream": True, "stream_options": {"include_usage": True}}

    def ask() -> Verdict:
        path = f"{url}/v1/chat/completions"
        with requests.post(path, json=body, headers=headers, timeout=timeout, stream=True) as answer:
            if answer.status_code != 200:
                return checks.judge_chat(answer.status_code, answer.text)
            return checks.judge_stream(read_lines(answer))

    run(f"POST {url}/v1/chat/completions, model {model}, streamed", ask, patience)


@command.command()
@URL
@MODEL
@KEY
@TIMEOUT
@PATIENCE
def jobs(url: str, model: str, headers: Headers, timeout: float, patience: float) -> None:
    """A request that is stored is run, and its answer can be read."""
    stored: list[str] = []

    def store() -> Verdict:
        wish = headers | {"Prefer": "respond-async"}
        answer = requests.post(f"{url}/v1/chat/completions", json=chat_body(model), headers=wish, timeout=timeout)
        location = answer.headers.get("Location", "")
        stored[:] = [location]
        return checks.judge_accepted(answer.status_code, location, answer.text)

    def fetch() -> Verdict:
        answer = requests.get(f"{url}{stored[0]}/result", params={"wait": "10"}, headers=headers, timeout=timeout)
        return checks.judge_result(answer.status_code, answer.text)

    run(f"POST {url}/v1/chat/completions, model {model}, Prefer: respond-async", store, patience)
    run(f"GET {url}/v1/requests/.../result", fetch, max(patience, JOB_SECONDS))


@command.command()
@URL
@TIMEOUT
@PATIENCE
def keys(url: str, timeout: float, patience: float) -> None:
    """Nobody is let in without an API key, or with one that nobody was given."""

    def knock(sent: str, headers: Headers) -> Verdict:
        answer = requests.get(f"{url}/v1/models", headers=headers, timeout=timeout)
        return checks.judge_unauthorized(sent, answer.status_code)

    run(f"GET {url}/v1/models", partial(knock, "without a key", {}), patience)
    run(f"GET {url}/v1/models", partial(knock, "with a wrong key", {"Authorization": f"Bearer {NO_KEY}"}), patience)


@command.command()
@URL
@MODEL
@KEY
@click.option("--page", required=True, callback=page_url, help="Metrics page, http://HOST:PORT/metrics, of every pod.")
@click.option(
    "--source",
    type=click.Choice(["router", "engine"]),
    default="router",
    show_default=True,
    help="Whose metrics these are.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds until a request that was answered must be counted.",
)
@TIMEOUT
@PATIENCE
def metrics(
    *,
    url: str,
    model: str,
    headers: Headers,
    page: SplitResult,
    source: str,
    settle: float,
    timeout: float,
    patience: float,
) -> None:
    """A request that is answered is counted, with its tokens."""
    series = checks.series_of(source, model)
    before: list[checks.Counted] = []

    def look() -> Verdict:
        pages = fetch_pages(page, timeout)
        verdict = checks.judge_pages(pages)
        if verdict.passed:
            before[:] = [checks.count((body for _, _, body in pages), series)]
        return verdict

    def compare() -> Verdict:
        after = checks.count((body for _, _, body in fetch_pages(page, timeout)), series)
        return checks.judge_advance(before[0], after, series)

    run(f"GET {page.geturl()}", look, patience)
    run(f"POST {url}/v1/chat/completions, model {model}", partial(ask_chat, url, model, headers, timeout), patience)
    run(f"GET {page.geturl()} again", compare, settle)


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


def ask_chat(url: str, model: str, headers: Headers, timeout: float) -> Verdict:
    """Ask for a completion that comes in one piece."""
    answer = requests.post(f"{url}/v1/chat/completions", json=chat_body(model), headers=headers, timeout=timeout)
    return checks.judge_chat(answer.status_code, answer.text)


def read_lines(answer: requests.Response) -> list[str]:
    """The lines of a stream, as bytes first: text would be split at U+2028, which JSON may carry raw.

    A stream that breaks off after an error event has said why; without one the break itself is the finding.
    """
    lines: list[str] = []
    try:
        for line in answer.iter_lines():
            lines.append(line.decode())
    except requests.RequestException:
        if not any(line.startswith('data: {"error"') for line in lines):
            raise
    return lines


def fetch_pages(page: SplitResult, timeout: float) -> list[tuple[str, int, str]]:
    """Ask every address that the name stands for: each pod counts what it did itself."""
    try:
        found = socket.getaddrinfo(page.hostname, page.port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    hosts = sorted({str(address[0]) for *_, address in found})
    pages = []
    for host in hosts:
        place = f"[{host}]:{page.port}" if ":" in host else f"{host}:{page.port}"
        answer = requests.get(f"http://{place}{page.path}", timeout=timeout)
        pages.append((place, answer.status_code, answer.text))
    return pages


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
