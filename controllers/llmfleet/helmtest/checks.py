"""Judge what a router answered.

In: statuses, bodies and server-sent lines as they came. Out: a Verdict with one sentence for each fact, or the one
sentence that says what is wrong. It never connects, waits or prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

DONE: Final = "[DONE]"
# A fleet that is still starting: not listed yet, or nobody ready to serve it.
STARTING: Final = frozenset({404, 502, 503})
MIN_CHUNKS: Final = 2
# Where engines put text: vLLM names reasoning either way, depending on its version.
TEXTS: Final = (("answer", "content"), ("reasoning", "reasoning_content"), ("reasoning", "reasoning"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check found; `later` means that the same check may pass once the fleet has started."""

    passed: bool
    facts: Sequence[str] = ()
    problem: str = ""
    later: bool = False


def failed(problem: str, *, later: bool = False) -> Verdict:
    """Say what is wrong."""
    return Verdict(passed=False, problem=problem, later=later)


def judge_models(status: int, body: str, models: Sequence[str]) -> Verdict:
    """`GET /v1/models` must list every one of the models."""
    answer, problem = read_json(status, body)
    if problem:
        return problem
    entries = answer.get("data")
    names = [str(e.get("id")) for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    if missing := next((model for model in models if model not in names), None):
        return failed(f"{missing!r} is not among the models listed: {', '.join(names) or 'none'}", later=True)
    return Verdict(passed=True, facts=(f"models listed: {', '.join(names)}",))


def judge_chat(status: int, body: str) -> Verdict:
    """A completion must count its tokens, and bring text, reasoning text or at least a finish reason.

    A model that thinks first may spend a small budget of tokens on its thoughts: it answered all the same.
    """
    answer, problem = read_json(status, body)
    if problem:
        return problem
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return failed(f"the answer has no choices: {shorten(body)}")
    if not isinstance(choices[0], dict):
        return failed(f"the first choice is no object: {shorten(body)}")
    kind, text = text_of(choices[0].get("message"))
    reason = choices[0].get("finish_reason")
    if not text and not reason:
        return failed(f"the first choice has no content and no finish reason: {shorten(body)}")
    if not completion_tokens(answer):
        return failed(f"usage counts no completion tokens: {shorten(body)}")
    facts = (
        f"{kind}: {shorten(text)}" if text else "answer: no text",
        f"finish_reason: {reason}, completion tokens: {completion_tokens(answer)}",
    )
    return Verdict(passed=True, facts=facts)


def text_of(message: Any) -> tuple[str, str]:
    """What a message or a delta says, and what that is: the answer, or the reasoning before it."""
    for kind, field in TEXTS if isinstance(message, dict) else ():
        if isinstance(text := message.get(field), str) and text:
            return kind, text
    return "", ""


def judge_accepted(status: int, location: str, body: str) -> Verdict:
    """A request that prefers to be a job must be stored, and say where its answer will be."""
    if status == 200:
        return failed("the request was answered at once: the router has no Redis, or has not read its settings yet")
    if status != 202:
        return failed(f"status {status}, 202 expected: {shorten(body)}", later=status in STARTING)
    if not location.startswith("/v1/requests/"):
        return failed(f"Location is {location!r}, /v1/requests/ID expected")
    return Verdict(passed=True, facts=(f"stored as {location.rpartition('/')[2][:12]}...",))


def judge_result(status: int, body: str) -> Verdict:
    """The answer of a job must be a completion."""
    if status == 202:
        return failed(f"the job is not done yet: {shorten(body)}", later=True)
    return judge_chat(status, body)


def judge_stream(lines: Iterable[str]) -> Verdict:
    """A stream must bring at least two chunks of text or reasoning text, its usage, and [DONE] last.

    One without any text passes when it counts tokens and says why it ended.
    """
    events = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    try:
        chunks = [json.loads(event) for event in events if event != DONE]
    except ValueError as error:
        return failed(f"an event is not JSON: {error}")
    if odd := [event for event in chunks if not isinstance(event, dict)]:
        return failed(f"an event is no JSON object: {shorten(json.dumps(odd[0]))}")
    if broken := next((chunk for chunk in chunks if "error" in chunk), None):
        return failed(f"the stream carried an error: {shorten(json.dumps(broken['error']))}")
    if DONE not in events:
        return failed(f"the stream ended after {len(events)} events without [DONE]: it was cut short")
    if events[-1] != DONE:
        return failed("events followed [DONE]")
    return judge_chunks(chunks)


def judge_chunks(chunks: Sequence[Mapping[str, Any]]) -> Verdict:
    """Count what the chunks brought."""
    if odd := next((chunk for chunk in chunks if not sound(chunk)), None):
        return failed(f"a chunk's choices are no list of objects: {shorten(json.dumps(odd))}")
    choices = [choice for chunk in chunks for choice in chunk.get("choices") or ()]
    texts = [text for choice in choices if (text := text_of(choice.get("delta"))[1])]
    reason = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), None)
    if len(texts) < MIN_CHUNKS and (texts or not reason):
        return failed(
            f"only {len(texts)} chunks carried text, at least {MIN_CHUNKS} expected: was the answer buffered?"
        )
    tokens = max((completion_tokens(chunk) for chunk in chunks), default=0)
    if not tokens:
        return failed("no chunk carried the usage that was asked for")
    facts = (
        f"text in {len(texts)} chunks: {shorten(''.join(texts))}" if texts else f"no text, finish_reason: {reason}",
        f"usage: {tokens} completion tokens",
        "last: [DONE]",
    )
    return Verdict(passed=True, facts=facts)


def sound(chunk: Mapping[str, Any]) -> bool:
    """Whether its choices are objects; the one with the usage has none."""
    choices = chunk.get("choices") or []
    return isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)


def completion_tokens(answer: Mapping[str, Any]) -> int:
    """The answer's own count of what it generated; 0 when it says nothing."""
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def judge_unauthorized(sent: str, status: int) -> Verdict:
    """Who has no key, or a wrong one, must not be let in."""
    if status in STARTING:
        return failed(f"{sent}: status {status}, the router is still starting", later=True)
    if status != 401:
        return failed(f"{sent}: status {status}, 401 expected: this router lets in who has no key")
    return Verdict(passed=True, facts=(f"{sent}: 401",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Counters of requests and of generated tokens, and the labels that say whose."""

    requests: str
    tokens: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What all pages say together."""

    requests: float
    tokens: float


def series_of(source: str, model: str) -> Series:
    """Name the counters of a router or of an engine; an engine of one model needs no label."""
    if source == "engine":
        return Series(requests="vllm:request_success_total", tokens="vllm:generation_tokens_total", labels={})
    return Series(
        requests="llmfleet_router_requests_total",
        tokens="llmfleet_router_completion_tokens_total",
        labels={"model": model},
    )


def count(pages: Iterable[str], series: Series) -> Counted:
    """Add the counters up over the pages of all pods; one that is not there yet counts as 0."""
    samples = [s for page in pages for family in text_string_to_metric_families(page) for s in family.samples]
    ours = [s for s in samples if series.labels.items() <= s.labels.items()]
    return Counted(
        requests=sum(s.value for s in ours if s.name == series.requests),
        tokens=sum(s.value for s in ours if s.name == series.tokens),
    )


def judge_pages(pages: Sequence[tuple[str, int, str]]) -> Verdict:
    """Every pod must answer with its metrics; each page is (address, status, body)."""
    if not pages:
        return failed("the name stands for no address: no pod is ready", later=True)
    if broken := next(((address, status) for address, status, _ in pages if status != 200), None):
        return failed(f"{broken[0]} gave status {broken[1]}, 200 expected", later=True)
    try:
        sizes = [sum(1 for _ in text_string_to_metric_families(body)) for _, _, body in pages]
    except ValueError as error:
        return failed(f"a page is no Prometheus text: {error}")
    return Verdict(
        passed=True, facts=tuple(f"{page[0]}: {size} metrics" for page, size in zip(pages, sizes, strict=True))
    )


def judge_advance(before: Counted, after: Counted, series: Series) -> Verdict:
    """A request that was answered must be counted, and so must its tokens."""
    requests, tokens = after.requests - before.requests, after.tokens - before.tokens
    if requests < 1:
        return failed(f"{series.requests} stayed at {after.requests:.0f} although a request was answered", later=True)
    if tokens < 1:
        return failed(f"{series.tokens} stayed at {after.tokens:.0f} although tokens were generated", later=True)
    facts = (f"{series.requests}: {requests:.0f} more", f"{series.tokens}: {tokens:.0f} more")
    return Verdict(passed=True, facts=facts)


def judge_closed_port(port: int, client_port_open: bool, admin_port_open: bool) -> Verdict:
    """The admin port must not answer where the client port does; without the second fact the first proves nothing."""
    if not client_port_open:
        return failed("the client port does not answer either, so this proves nothing", later=True)
    if admin_port_open:
        return failed(f"port {port} answers through the client Service: anybody could drain the router")
    return Verdict(passed=True, facts=(f"port {port} does not answer through the client Service",))


def judge_hidden_path(path: str, status: int) -> Verdict:
    """An admin path must not exist on the client port."""
    if status in STARTING - {404}:
        return failed(f"GET {path} gave {status}: the router is still starting", later=True)
    if status != 404:
        return failed(f"GET {path} gave {status} on the client port, 404 expected: it belongs to the admin port only")
    return Verdict(passed=True, facts=(f"GET {path} gives 404 on the client port",))


def read_json(status: int, body: str) -> tuple[dict[str, Any], Verdict | None]:
    """The answer's JSON object, or why there is none."""
    if status != 200:
        return {}, failed(f"status {status}: {shorten(body)}", later=status in STARTING)
    try:
        answer = json.loads(body)
    except ValueError as error:
        return {}, failed(f"the body is not JSON ({error}): {shorten(body)}")
    return (answer, None) if isinstance(answer, dict) else ({}, failed(f"the body is no JSON object: {shorten(body)}"))


def shorten(text: str, width: int = 300) -> str:
    """One readable line."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
