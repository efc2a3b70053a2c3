"""Streams of chat completions for Locust, with TTFT and TPOT as figures of their own.

In: a host, `--model`, and how long prompts and answers are. Out: beside each POST, whose time Locust takes when the
head of the answer came, a row `TTFT`, until the first text, and a row `TPOT`, milliseconds for each further token. A
stream without `[DONE]`, with an error event or without usage is a failure. Exit status 1 on failures or a missed
objective.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locust import HttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

PATH = "/v1/chat/completions"
WORDS = "time year people way day man thing woman life child world school state family student group".split()  # noqa: SIM905


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """What a user of this file may choose; Locust shows it in its page as well."""
    parser.add_argument("--model", required=True, help="Model name as a client asks for it")
    parser.add_argument("--prompt-words", type=int, default=400)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--key-file", default="", include_in_web_ui=False, help="File with the API key, one line")
    parser.add_argument("--slo-ttft-ms", type=float, default=0.0, help="p99 above it: exit status 1")
    parser.add_argument("--slo-tpot-ms", type=float, default=0.0, help="p99 above it: exit status 1")


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """The exit status of a headless run."""
    options, stats = environment.parsed_options, environment.stats
    limits = (("TTFT", options.slo_ttft_ms), ("TPOT", options.slo_tpot_ms))
    missed = [
        name for name, limit in limits if limit and stats.get(PATH, name).get_response_time_percentile(0.99) > limit
    ]
    if missed or stats.total.num_failures or not stats.get(PATH, "TTFT").num_requests:
        print(f"missed: {', '.join(missed) or 'nothing'}; failures: {stats.total.num_failures}")
        environment.process_exit_code = 1


@dataclass
class Heard:
    """What a stream said, and when."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    done: bool = False
    problem: str = ""

    def read(self, lines: Iterable[bytes]) -> Heard:
        """Follow the events to the end."""
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                self.done = True
            elif data and line.startswith(b"data:"):
                self.event(json.loads(data), time.perf_counter())
        return self

    def event(self, found: dict[str, Any], now: float) -> None:
        if "error" in found:
            self.problem = f"error event: {found['error']}"
        self.tokens = (found.get("usage") or {}).get("completion_tokens") or self.tokens
        if any((one.get("delta") or {}).get("content") for one in found.get("choices") or ()):
            self.first, self.last = self.first or now, now

    def failure(self) -> str:
        """What is wrong with it, or nothing."""
        if self.problem:
            return self.problem
        if not self.done:
            return "the stream ended without [DONE]"
        return "" if self.first and self.tokens else "no text or no usage"


class ChatUser(HttpUser):
    """A user who asks again as soon as the answer is there."""

    def on_start(self) -> None:
        options = self.environment.parsed_options
        if options.key_file:
            self.client.headers["Authorization"] = f"Bearer {Path(options.key_file).read_text().strip()}"

    @task
    def chat(self) -> None:
        options = self.environment.parsed_options
        # Words in another order each time: otherwise the engine's prefix cache answers.
        prompt = " ".join(random.choices(WORDS, k=options.prompt_words))
        body = {
            "model": options.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": options.output_tokens,
            "ignore_eos": True,  # a field of vLLM: answers of equal length
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begin = time.perf_counter()
        with self.client.post(PATH, json=body, stream=True, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code} {answer.text[:200]}")
                return
            try:
                heard = Heard().read(answer.iter_lines(chunk_size=None))
            except (OSError, ValueError) as problem:  # what requests raises is an OSError
                answer.failure(f"broken off: {problem}")
                return
            if words := heard.failure():
                answer.failure(words)
                return
            answer.success()
        self.measured("TTFT", heard.first - begin, heard.tokens)
        if heard.tokens > 1:
            self.measured("TPOT", (heard.last - heard.first) / (heard.tokens - 1), heard.tokens)

    def measured(self, kind: str, seconds: float, tokens: int) -> None:
        """A row of its own in Locust's tables, charts and CSV."""
        self.environment.events.request.fire(
            request_type=kind,
            name=PATH,
            response_time=1000 * seconds,
            response_length=tokens,
            exception=None,
            context={},
        )
