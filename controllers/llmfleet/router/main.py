"""Commands of the data plane: `llmfleet router` and `llmfleet backends`.

In: options. Out: a running router, or a backends document on standard output. Wrong input is one line that says what
to write, and exit code 2. It never talks to Kubernetes.
"""

from __future__ import annotations

import secrets
import sys
import time
from typing import Final
from urllib.parse import urlsplit

import click

from llmfleet.api.document import Document, DocumentError, Endpoint, Model, parse_document, render, with_generation
from llmfleet.names import ADMIN_PORT, ENGINE_PORT, ROUTER_PORT
from llmfleet.router.keys import hashed

MIN_KEY: Final = 20
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.command(name="router", context_settings=CONTEXT)
@click.option("--settings", "settings_file", type=click.Path(), help="Settings, YAML; without it every default holds.")
@click.option(
    "--backends", required=True, type=click.Path(), help="Backends document, JSON; looked at 10 times a second."
)
@click.option(
    "--keys",
    "keys_file",
    type=click.Path(),
    help="API keys and tenants, YAML; looked at 10 times a second. Without it every client is let in.",
)
@click.option("--host", default="", help="Address to listen on; empty means all.")
@click.option(
    "--port", default=ROUTER_PORT, type=click.IntRange(0, 65535), help="Port for clients; 0 picks a free one."
)
@click.option(
    "--admin-port", default=ADMIN_PORT, type=click.IntRange(0, 65535), help="Port for /metrics, /fleet, /drain."
)
def command(
    settings_file: str | None, backends: str, keys_file: str | None, host: str, port: int, admin_port: int
) -> None:
    """Serve the OpenAI API and relay each request to an engine.

    SIGTERM drains: unready at once, no new connections after drain.settleSeconds, exit when the open requests are
    answered or after drain.timeoutSeconds. A second SIGTERM exits at once.
    """
    import uvloop

    from llmfleet.router.app import Listen, serve
    from llmfleet.router.limits import SettingsError, parse_settings
    from llmfleet.settings import UnreadableSettings, pod_name, read_settings_file
    from llmfleet.telemetry import set_up_logs

    try:
        settings = parse_settings(read_settings_file(settings_file))
    except (SettingsError, UnreadableSettings) as error:
        raise click.UsageError(str(error)) from None
    set_up_logs(settings.log_level)
    listen = Listen(host=host or None, port=port, admin_port=admin_port)
    try:
        uvloop.run(serve(settings, backends, listen, pod_name(), time.time, keys_file))
    except OSError as error:
        raise click.ClickException(f"cannot listen: {error.strerror or error}") from None


@click.command(name="backends", context_settings=CONTEXT)
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="NAME=URL[,URL...]",
    help="A served model and its engines; may be given several times.",
)
@click.option("--slots", default=256, type=click.IntRange(1), help="Requests each engine may have at once.")
def backends_command(models: tuple[str, ...], slots: int) -> None:
    """Print a backends document for engines given by URL."""
    document = Document(models=dict(_model(text, slots) for text in models))
    document = with_generation(document, previous=0, now_ms=int(time.time() * 1000))
    data = render(document)
    try:
        parse_document(data)
    except DocumentError as error:
        raise click.UsageError(str(error)) from None
    click.echo(data, nl=False)


@click.command(name="hash", context_settings=CONTEXT)
def hash_command() -> None:
    """Read an API key from standard input and print its hash, for `keys` of a tenant in a keys file.

    Line ends around the key do not count. A key must be random: 32 letters or more, as of `openssl rand -hex 32`.
    """
    key = sys.stdin.readline().strip()
    if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise click.UsageError(f"write one key of at least {MIN_KEY} letters, digits and signs to standard input")
    click.echo(hashed(key))


@click.command(name="new", context_settings=CONTEXT)
def new_command() -> None:
    """Print a new random API key."""
    click.echo(f"sk-{secrets.token_urlsafe(32)}")


keys_command = click.Group(
    "keys",
    commands=[hash_command, new_command],
    help="Make API keys, and the hashes a keys file holds.",
    context_settings=CONTEXT,
)


def _model(text: str, slots: int) -> tuple[str, Model]:
    name, separator, urls = text.partition("=")
    if not name or not separator or not urls:
        raise click.UsageError(f"--model {text}: write NAME=URL[,URL...], as in --model llama=http://10.0.0.9:8000")
    return name, Model(endpoints=tuple(_endpoint(url.strip(), slots) for url in urls.split(",")))


def _endpoint(url: str, slots: int) -> Endpoint:
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or ENGINE_PORT
    except ValueError:
        host, port, parts = None, 0, urlsplit("")
    if not host or parts.scheme != "http" or parts.path not in ("", "/"):
        raise click.UsageError(f"--model: {url} is not an engine's URL, write http://HOST:PORT")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = f"{host}:{port}".replace(":", "-").lstrip("-")
    return Endpoint(instance=name, address=address, pod_uid=f"static-{address}", slots=slots)
