"""Read what a Containerfile's last stage says about running the image.

In: the text of a Containerfile. Out: the `config` object of an OCI image. The file is the one place
for entry point, user and environment, so that a build by Docker and ours cannot differ in them.
`FROM`, `COPY`, `RUN`, `ARG` decide the file system and are not read here.
"""

import json
import shlex
from typing import Any

ELSEWHERE = ("FROM", "COPY", "RUN", "ARG")


class ContainerfileError(Exception):
    """A message for whoever edits the file."""


def image_config(text: str) -> dict[str, Any]:
    """Return the OCI config of the last stage."""
    config: dict[str, Any] = {}
    for line in _last_stage(text):
        instruction, _, rest = line.partition(" ")
        if instruction.upper() not in ELSEWHERE:
            _apply(config, instruction.upper(), rest.strip())
    return config


def _last_stage(text: str) -> list[str]:
    """Join continued lines, drop comments, keep what follows the last FROM."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.upper().startswith("FROM ")]
    if not starts:
        raise ContainerfileError("no FROM instruction")
    return lines[starts[-1] :]


def _apply(config: dict[str, Any], instruction: str, rest: str) -> None:
    match instruction:
        case "ENV":
            config.setdefault("Env", []).extend(shlex.split(rest))
        case "LABEL":
            config.setdefault("Labels", {}).update(part.split("=", 1) for part in shlex.split(rest))
        case "EXPOSE":
            config.setdefault("ExposedPorts", {}).update({f"{port}/tcp": {} for port in rest.split()})
        case "VOLUME":
            config.setdefault("Volumes", {}).update({path: {} for path in json.loads(rest)})
        case "ENTRYPOINT" | "CMD":
            config["Entrypoint" if instruction == "ENTRYPOINT" else "Cmd"] = json.loads(rest)
        case "USER" | "WORKDIR" | "STOPSIGNAL":
            config[{"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}[instruction]] = rest
        case _:
            raise ContainerfileError(f"{instruction}: this builder does not know the instruction")
