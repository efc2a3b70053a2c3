"""Reduce an HTTP answer to what two engines must have in common.

In: raw bytes. Out: JSON-like data: status, header names in order, content type, and the body with free
values replaced by their kind. Fixed words (objects, roles, reasons, error texts) stay as they are.
"""

import json
import re
from typing import Any

FIXED = {
    *("object", "role", "type", "finish_reason", "stop_reason", "status", "owned_by", "version", "service_tier"),
    *("message", "param", "code", "detail", "error", "tool_choice", "truncation", "reason", "parent"),
}


def shape(value: Any, key: str = "") -> Any:
    """Keep structure, key order and fixed words; replace the rest by its kind."""
    if key == "top_logprobs" and isinstance(value, dict):
        return {"a token": "number"}
    if key == "bytes":
        return "bytes"  # none for a special token, which the random model likes to say
    if isinstance(value, dict):
        return {k: shape(v, k) for k, v in value.items()}
    if isinstance(value, list):
        kinds: list[Any] = []
        for item in (shape(v, key) for v in value):
            kinds += [] if item in kinds else [item]
        return kinds
    if value is None or isinstance(value, bool) or key in FIXED:
        return value
    return "number" if isinstance(value, (int, float)) else "text"


def split_chunks(body: bytes) -> list[bytes]:
    """Undo chunked transfer encoding; a body that lacks its end is marked."""
    chunks = []
    while body:
        head, _, body = body.partition(b"\r\n")
        size = int(head, 16)
        if not size:
            return chunks
        chunks.append(body[:size])
        body = body[size + 2 :]
    return [*chunks, b"cut off"]


def event_shape(chunk: bytes) -> Any:
    """Give the shape of one chunk of an event stream, its framing included."""
    lines = []
    for line in chunk.decode("utf-8", "replace").split("\n"):
        name, colon, data = line.partition(": ")
        lines.append({name: shape(json.loads(data))} if data.startswith("{") else name + colon + data)
    return lines


def answer_shape(raw: bytes) -> dict[str, Any]:
    """Give the shape of a whole answer; equal shapes of a stream's events count once, in order of appearance."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    found: dict[str, Any] = {"status": status, "headers": list(headers), "type": headers.get("content-type")}
    if headers.get("transfer-encoding") == "chunked":
        events: list[Any] = []
        for event in map(event_shape, split_chunks(body)):
            events += [] if event in events else [event]
        return {**found, "events": events}
    try:
        return {**found, "body": shape(json.loads(body), "detail" if b'"detail"' in body else "")}
    except ValueError:
        return {**found, "body": body.decode("utf-8", "replace")[:80]}


def loose(answer: dict[str, Any]) -> dict[str, Any]:
    """Drop what a loosely compared answer may say differently."""
    body = answer.get("body")
    keys = sorted(body["error"]) if isinstance(body, dict) and isinstance(body.get("error"), dict) else body
    return {"status": answer["status"], "headers": answer["headers"], "type": answer["type"], "keys": keys}


def metric_shape(text: str) -> dict[str, Any]:
    """Give every family in order: help, kind, and the label sets of its samples without their values."""
    families: dict[str, Any] = {}
    name = ""
    text = re.sub(r'(mamba_ssm_cache_dtype)="\w+"', r'\1="by platform"', text)
    for line in text.splitlines():
        words = line.split(" ", 3)
        if line.startswith("# HELP "):
            name = words[2]
            families[name] = {"help": line[len(f"# HELP {name} ") :], "samples": []}
        elif line.startswith("# TYPE "):
            families[name]["kind"] = words[3]
        else:
            families[name]["samples"].append(line.rpartition(" ")[0])
    return families
