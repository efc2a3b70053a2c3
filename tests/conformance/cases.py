"""Every request of the comparison: name, method, path, body, headers.

In: nothing. Out: CASES. A case named in LOOSE is compared by status, content type and keys alone, because
the text quotes something that only one engine has.
"""

import json
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One request."""

    name: str
    method: str
    path: str
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()


TEXT = {"model": "tiny", "prompt": "The quick brown", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
TALK = [{"role": "user", "content": "The quick brown fox"}]
CHAT = {"model": "tiny", "messages": TALK, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
RESPONSE = {"model": "tiny", "input": "The quick brown fox", "max_output_tokens": 4, "temperature": 0}
MESSAGE = {"model": "tiny", "messages": TALK, "max_tokens": 4, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
USAGE = {"include_usage": True}
EVERY = {"include_usage": True, "continuous_usage_stats": True}
LONG = "The quick brown fox jumps " * 600  # too long by its characters alone
ABOVE = "The quick brown fox " * 600


def long_enough(body: dict[str, Any]) -> dict[str, Any]:
    """Give a stream so many tokens that they never come all in one event, as four may on a busy machine."""
    return {**body, "max_tokens": 24} if body.get("stream") and body.get("max_tokens") == 4 else body


def text(name: str, *, drop: str = "", headers: tuple[tuple[str, str], ...] = (), **change: Any) -> Case:
    """Change one thing about a completion."""
    body = long_enough({k: v for k, v in {**TEXT, **change}.items() if k != drop})
    return Case(f"completion {name}", "POST", "/v1/completions", body, headers)


def chat(name: str, *, drop: str = "", **change: Any) -> Case:
    """Change one thing about a chat completion."""
    body = long_enough({k: v for k, v in {**CHAT, **change}.items() if k != drop})
    return Case(f"chat {name}", "POST", "/v1/chat/completions", body)


def response(name: str, **change: Any) -> Case:
    """Change one thing about a response."""
    return Case(f"response {name}", "POST", "/v1/responses", {**RESPONSE, **change})


def message(name: str, *, drop: str = "", **change: Any) -> Case:
    """Change one thing about a message."""
    body = {k: v for k, v in {**MESSAGE, **change}.items() if k != drop}
    return Case(f"message {name}", "POST", "/v1/messages", body)


def post(path: str, body: Any, name: str = "") -> Case:
    """POST something else."""
    return Case(name or f"POST {path}", "POST", path, body)


def raw(name: str, body: bytes, path: str = "/v1/completions", kind: str = "application/json") -> Case:
    """POST bytes."""
    return Case(f"body {name}", "POST", path, body, (("Content-Type", kind),))


def plain(path: str, method: str = "GET", *, origin: str = "") -> Case:
    """Send a request without a body."""
    name = f"{method} {path}" + (" from another origin" if origin else "")
    return Case(name, method, path, None, (("Origin", origin),) if origin else ())


GOOD = [
    text("unary"),
    text("stream", stream=True),
    text("stream with usage", stream=True, stream_options=USAGE),
    text("stream with usage on every event", stream=True, stream_options=EVERY),
    text("stream with continuous usage alone", stream=True, stream_options={"continuous_usage_stats": True}),
    text("two choices", n=2, temperature=1, seed=3),
    text("two choices streamed", n=2, temperature=1, seed=3, stream=True),
    text("two prompts", prompt=["a b c d", "c d e f"]),
    text("two prompts streamed", prompt=["a b c d", "c d e f"], stream=True, stream_options=USAGE),
    text("token prompt", prompt=[272, 270, 308]),
    text("token prompts", prompt=[[272, 270], [308]]),
    text("echo", echo=True),
    text("echo streamed", echo=True, stream=True),
    text("echo of the prompt alone", echo=True, max_tokens=0),
    text("logprobs", logprobs=2),
    text("logprobs streamed", logprobs=1, stream=True),
    text("token ids", return_token_ids=True),
    text("token ids streamed", return_token_ids=True, stream=True),
    text("default length", drop="max_tokens"),
    text("least length", min_tokens=3),
    text("no model", drop="model"),
    text("null model", model=None),
    text("length as text", max_tokens="4"),
    text("all but one token of context", prompt=[272] * 1023),
    text("unknown field", foo=1),
    text("transfer without connector", kv_transfer_params={"do_remote_decode": True}),
    text("user and seed", user="u", seed=5, best_of=2),
    text("request id header", headers=(("X-Request-Id", "abc-123"),)),
    text("request id field", request_id="body-id"),
    text("priority under fcfs", priority=5),
    text("cache salt", cache_salt="x"),
    text("load header JSON", headers=(("endpoint-load-metrics-format", "JSON"),)),
    text("load header TEXT", headers=(("endpoint-load-metrics-format", "TEXT"),)),
    text("load header on a stream", stream=True, headers=(("endpoint-load-metrics-format", "JSON"),)),
    text("origin header", headers=(("Origin", "http://a"),)),
    chat("unary"),
    chat("stream", stream=True),
    chat("stream with usage", stream=True, stream_options=USAGE),
    chat("stream with usage on every event", stream=True, stream_options=EVERY),
    chat("two choices", n=2, temperature=1, seed=2),
    chat("two choices streamed", n=2, temperature=1, seed=2, stream=True),
    chat("logprobs", logprobs=True, top_logprobs=1),
    chat("logprobs streamed", logprobs=True, top_logprobs=1, stream=True),
    chat("completion tokens", drop="max_tokens", max_completion_tokens=3),
    chat("both lengths", max_completion_tokens=3),
    chat("system", messages=[{"role": "system", "content": "be good"}, *TALK]),
    chat("text parts", messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    chat("odd role", messages=[{"role": "zzz", "content": "x"}]),
    chat("no content", messages=[{"role": "user"}]),
    chat("token ids", return_token_ids=True),
    chat("token ids streamed", return_token_ids=True, stream=True),
    chat("continued", messages=[*TALK, {"role": "assistant", "content": "The"}], add_generation_prompt=False),
    chat("empty stream options", stream_options={}),
    chat("transfer without connector", kv_transfer_params={"do_remote_decode": True}),
    response("unary"),
    response("stream", stream=True),
    response("message input", input=[{"role": "user", "content": "hi"}]),
    response("instructions", instructions="be good"),
    response("store", store=True),
    message("unary"),
    message("stream", stream=True),
    message("system", system="be good"),
    message("text parts", messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    post("/v1/messages/count_tokens", {"model": "tiny", "messages": TALK}),
    post("/tokenize", {"model": "tiny", "prompt": "a b c d e f"}),
    post("/tokenize", {"model": "tiny", "prompt": "a b c d e f", "return_token_strs": True}, "tokenize with texts"),
    post("/tokenize", {"model": "tiny", "messages": TALK}, "tokenize chat"),
    post("/tokenize", {"prompt": "a b c d e f"}, "tokenize without model"),
    post("/detokenize", {"model": "tiny", "tokens": [272, 270]}),
    post("/invocations", TEXT),
    post("/invocations", CHAT, "invocations chat"),
    raw("with charset", json.dumps(TEXT).encode(), kind="application/json; charset=utf-8"),
]

BAD = [
    text("least above most", min_tokens=30),
    text("empty prompt", prompt=""),
    text("empty prompt list", prompt=[]),
    text("no prompt", drop="prompt"),
    text("null prompt", prompt=None),
    text("number as prompt", prompt=5),
    text("wrong model", model="nope"),
    text("wrong model streamed", model="nope", stream=True),
    text("number as model", model=5),
    text("length zero", max_tokens=0),
    text("length negative", max_tokens=-1),
    text("length above context", max_tokens=100000),
    text("length no number", max_tokens="x"),
    text("length fractional", max_tokens=4.5),
    text("prompt far above context", prompt=LONG),
    text("prompt above context", prompt=ABOVE),
    text("token prompt above context", prompt=[272] * 1100),
    text("prompt fills context", prompt=[272] * 1024),
    text("token out of vocabulary", prompt=[272, 10**12]),
    text("temperature negative", temperature=-1),
    text("temperature three", temperature=3),
    text("temperature no number", temperature="hot"),
    text("top_p zero", top_p=0),
    text("top_p two", top_p=2),
    text("top_k minus two", top_k=-2),
    text("no choice", n=0),
    text("two greedy choices", n=2),
    text("presence penalty", presence_penalty=3),
    text("frequency penalty", frequency_penalty=3),
    text("too many logprobs", logprobs=50),
    text("negative logprobs", logprobs=-2),
    text("stream options without stream", stream_options=USAGE),
    text("stream no boolean", stream="maybe"),
    text("suffix", suffix="x"),
    text("stop no text", stop=5),
    text("stop empty", stop=""),
    text("cache salt empty", cache_salt=""),
    text("priority null", priority=None),
    chat("image", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
    chat("no messages", drop="messages"),
    chat("empty messages", messages=[]),
    chat("messages no list", messages="x"),
    chat("message without role", messages=[{"content": "x"}]),
    chat("content no text", messages=[{"role": "user", "content": 5}]),
    chat("top logprobs alone", top_logprobs=1),
    chat("wrong model", model="nope"),
    chat("wrong model streamed", model="nope", stream=True),
    chat("tools", tools=[TOOL]),
    chat("tool choice without tools", tool_choice="auto"),
    chat("prompt far above context", messages=[{"role": "user", "content": LONG}]),
    chat("prompt above context", messages=[{"role": "user", "content": ABOVE}]),
    chat("length above context", max_tokens=100000),
    chat("temperature negative", temperature=-1),
    response("wrong model", model="nope"),
    response("unknown previous", previous_response_id="resp_x"),
    response("background", background=True),
    response("length above context", max_output_tokens=100000),
    response("prompt above context", input=ABOVE),
    message("no length", drop="max_tokens"),
    message("wrong model", model="nope"),
    message("no messages", drop="messages"),
    message("prompt above context", messages=[{"role": "user", "content": ABOVE}]),
    message("length above context", max_tokens=100000),
    message("length zero", max_tokens=0),
    post("/v1/messages/count_tokens", {}, "count tokens of nothing"),
    post("/tokenize", {"model": "tiny"}, "tokenize nothing"),
    post("/tokenize", {"model": "nope", "prompt": "a"}, "tokenize wrong model"),
    post("/detokenize", {"model": "tiny"}, "detokenize nothing"),
    post("/detokenize", {"model": "tiny", "tokens": [-1]}, "detokenize negative"),
    post("/invocations", {}, "invocations empty"),
    post("/scale_elastic_ep", {}),
    raw("not JSON", b'{"model":oops'),
    raw("empty", b""),
    raw("array", b"[1]"),
    raw("text", b'"x"'),
    raw("trailing comma", b'{"model":"tiny",}'),
    raw("not UTF-8", b'{"model":"\xff"}'),
    raw("half", b"{", "/v1/chat/completions"),
    raw("half message", b"{", "/v1/messages"),
    raw("wrong type", json.dumps(TEXT).encode(), kind="text/plain"),
]

ROUTES = [
    *(plain(path) for path in ("/health", "/ping", "/version", "/load", "/v1/models", "/kv_event_sources")),
    *(plain(path) for path in ("/", "/nope", "/ready", "/readyz", "/v1/models/tiny", "/v1/models?x=1")),
    *(plain(path) for path in ("/health/", "/v1/models/", "/is_sleeping", "/server_info", "/fault_tolerance/status")),
    *(plain(path) for path in ("/v1/completions", "/tokenizer_info", "/v1/responses/resp_x")),
    *(plain(path, "POST") for path in ("/health", "/ping", "/sleep", "/pause", "/is_scaling_elastic_ep")),
    *(plain("/v1/completions", method) for method in ("OPTIONS", "DELETE")),
    plain("/health", "HEAD"),
    plain("/v1/models", origin="http://a"),
    post("/v1/responses/resp_x/cancel", {}),
    *(post(path, {"model": "tiny", "input": "x"}) for path in ("/v1/embeddings", "/pooling", "/classify", "/score")),
    *(post(path, {}) for path in ("/v1/score", "/rerank", "/v1/rerank", "/v2/rerank", "/v1/audio/transcriptions")),
    *(post(path, {}) for path in ("/inference/v1/generate", "/inference/v1/abort_requests")),
    *(post(f"/v1/{kind}completions/{verb}", {}) for kind in ("", "chat/") for verb in ("render", "derender")),
    *(post(f"/v1/{verb}_lora_adapter", {}) for verb in ("load", "unload")),
]

CASES = [*GOOD, *BAD, *ROUTES]
LOOSE = {"chat message without role", "chat content no text", "GET /v1/models/", "GET /health/"}
