"""What both official clients are shown: engines' answers for tools and responses, and the Node client itself."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from engine import DONE, Behaviour, Connection, Request, events, json_answer

NODE = Path(__file__).parent / "node"


def tool_event(index: int, arguments: str, finish: str | None = None) -> bytes:
    call = {"index": 0, "function": {"arguments": arguments}}
    if index == 0:
        call |= {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    delta = {} if finish else {"tool_calls": [call]}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def tool_calls() -> Behaviour:
    """Stream one tool call in three pieces, and check that the tools arrived."""
    behave = events(
        *(tool_event(i, a) for i, a in enumerate(('{"a"', ":", "1}"))), tool_event(3, "", "tool_calls"), DONE
    )

    async def checked(connection: Connection, request: Request) -> None:
        assert request.json["tools"][0]["function"]["name"] == "f"
        await behave(connection, request)

    return checked


def response(status: str = "completed") -> dict[str, Any]:
    text = {"type": "output_text", "text": "hello", "annotations": []}
    message = {"type": "message", "id": "m1", "role": "assistant", "status": status, "content": [text]}
    return {
        "id": "resp-1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def responses() -> Behaviour:
    """Answer /v1/responses, whole or as events."""

    def event(kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": 0} | fields
        return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()

    delta = event(
        "response.output_text.delta", delta="hello", item_id="m1", output_index=0, content_index=0, logprobs=[]
    )
    parts = (
        event("response.created", response=response("in_progress")),
        delta,
        event("response.completed", response=response()),
    )
    streamed = events(*parts)

    async def behave(connection: Connection, request: Request) -> None:
        assert request.path == "/v1/responses"
        if request.json.get("stream"):
            await streamed(connection, request)
        else:
            await connection.send(json_answer(200, response()))

    return behave


@functools.cache
def node_client() -> Path:
    """Return a folder with the client and the pinned SDK installed beside it, made once per version of either."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            raise AssertionError(f"{program} is not on this machine: install Node.js 20 or newer")
    inputs = [(NODE / name).read_bytes() for name in ("package.json", "client.mjs")]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("LLMFLEET_CACHE") or os.path.join(base, "llmfleet")) / "node"
    folder = cache / hashlib.sha256(b"|".join(inputs)).hexdigest()[:16]
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(NODE, scratch)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=300)
        try:
            scratch.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(scratch)
    return folder


async def node(scenario: str, port: int) -> Any:
    """Run one scenario of client.mjs against a router."""
    folder = await asyncio.to_thread(node_client)
    arguments = ["client.mjs", scenario, f"http://127.0.0.1:{port}/v1"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("node", *arguments, cwd=folder, stdout=pipe, stderr=pipe)
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return json.loads(out)
