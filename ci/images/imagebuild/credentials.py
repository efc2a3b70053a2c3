"""Find the user name and password for a registry where Docker and Podman keep them.

In: a registry's host, the environment. Out: credentials or None. Reads configuration files, may run a
`docker-credential-*` helper they name; never writes, never prints a secret.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN_USER = "<token>"  # what helpers answer as user name when the secret is an identity token


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user name with a password, or an identity token that is exchanged for access tokens."""

    username: str
    password: str = field(repr=False, default="")
    identity_token: str = field(repr=False, default="")

    @property
    def basic(self) -> str:
        """Return the value of a Basic Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def find(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Look in the environment first, then in each configuration file."""
    if user := environment.get("LLMFLEET_REGISTRY_USERNAME"):
        return Credentials(username=user, password=environment.get("LLMFLEET_REGISTRY_PASSWORD", ""))
    for file in _files(environment):
        if file.is_file() and (found := _from_config(json.loads(file.read_text()), host)):
            return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Return Podman's and Docker's files in the order Podman looks."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers/auth.json")
    home = Path(environment.get("HOME", os.curdir))
    yield home / ".config/containers/auth.json"
    yield Path(environment.get("DOCKER_CONFIG", home / ".docker")) / "config.json"


def _from_config(config: Mapping[str, Any], host: str) -> Credentials | None:
    helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
    if helper and (found := _ask_helper(str(helper), host)):
        return found
    for key in (host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"):
        if key in config.get("auths", {}):
            return _from_auth(config["auths"][key])
    return None


def _from_auth(auth: Mapping[str, str]) -> Credentials | None:
    if packed := auth.get("auth"):
        user, _, password = base64.b64decode(packed).decode().partition(":")
        return Credentials(username=user, password=password, identity_token=auth.get("identitytoken", ""))
    if user := auth.get("username", ""):
        return Credentials(username=user, password=auth.get("password", ""))
    return None


def _ask_helper(helper: str, host: str) -> Credentials | None:
    """Ask a credential helper; one that is absent or knows nothing is no error, others may know."""
    try:
        command = [f"docker-credential-{helper}", "get"]
        answer = subprocess.run(command, input=host, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    known = json.loads(answer.stdout)
    if known["Username"] == TOKEN_USER:
        return Credentials(username="", identity_token=known["Secret"])
    return Credentials(username=known["Username"], password=known["Secret"])
