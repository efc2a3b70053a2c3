"""The answers of /v1/chat/completions, byte for byte in vLLM's key order.

In: the words of an Ask's sequences. Out: the unary body or its events. Pure.
"""

from typing import Any

from llmfleet_sim.answers import DONE, Answer, Choice, likeliest, present, stamp
from llmfleet_sim.text import TEXTS, logprob_at


class ChatAnswer(Answer):
    """/v1/chat/completions."""

    def _base(self, object_name: str) -> dict[str, Any]:
        who = self.identity
        return {"id": who.id, "object": object_name, "created": who.created, "model": who.model}

    def created_cache_tokens(self) -> int | None:
        """Chat counts the tokens of full blocks that were not cached before."""
        size = self.config.block_size
        full = len(self.ask.prompts[0]) // size * size if self.config.prefix_caching else 0
        return max(0, full - self.choices[-1].cached)

    def opening(self) -> list[bytes]:
        """The role of every choice."""
        return [self._role(choice) for choice in self.choices]

    def _role(self, choice: Choice) -> bytes:
        delta = {"role": self.ask.role, "content": ""}
        entry = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        body = {**self._base("chat.completion.chunk"), "choices": [entry]}
        if self.ask.continuous_usage:
            prompt = self.prompt_tokens
            body["usage"] = {
                "prompt_tokens": prompt,
                "total_tokens": prompt,
                "completion_tokens": 0,
                "completion_tokens_details": None,
            }
        body["prompt_token_ids"] = list(self.ask.prompts[0]) if self.ask.token_ids else None
        body["prompt_text"] = None
        return self.event(body)

    def chunk(self, choice: Choice, text: str, first: int) -> bytes:
        """One content event."""
        entry: dict[str, Any] = {
            "index": choice.index,
            "delta": {"content": text},
            "logprobs": self._logprobs(choice, first),
            "finish_reason": choice.finish or None,
        }
        if choice.finish:
            entry["stop_reason"] = choice.stop_reason
        entry["token_ids"] = self.tokens(choice, first)
        body = {**self._base("chat.completion.chunk"), "choices": [entry]}
        if self.ask.continuous_usage:
            body["usage"] = self.usage(completion_tokens_details=None)
        if choice.finish and not self.ask.usage:
            body = stamp(body, self.identity)
        return self.event(body)

    def closing(self) -> list[bytes]:
        """Usage where asked for, then the end mark."""
        if not self.ask.usage:
            return [DONE]
        body = {**self._base("chat.completion.chunk"), "choices": [], "usage": self.last_usage()}
        return [self.event({**stamp(body, self.identity), **present(self.metrics)}), DONE]

    def whole(self) -> Any:
        """The unary body."""
        return {
            **self._base("chat.completion"),
            "choices": [self._entry(c) for c in self.choices],
            "service_tier": None,
            "system_fingerprint": self.identity.fingerprint,
            "usage": self.usage(prompt_tokens_details=self.details(), completion_tokens_details=None),
            "prompt_logprobs": None,
            "prompt_token_ids": list(self.ask.prompts[0]) if self.ask.token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": self.transfer,
            "ec_transfer_params": None,
            "metrics": self.metrics,
        }

    def _entry(self, choice: Choice) -> dict[str, Any]:
        message = {
            "role": self.ask.role,
            "content": choice.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice, 0),
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": self.tokens(choice),
            "routed_experts": None,
        }

    def _logprobs(self, choice: Choice, first: int) -> dict[str, Any] | None:
        if self.ask.logprobs is None:
            return None
        return {"content": [self._place(choice, p) for p in range(first, len(choice.words))]}

    def _place(self, choice: Choice, place: int) -> dict[str, Any]:
        word = choice.words[place]
        text, value = TEXTS[word] if word >= 0 else "", logprob_at(choice.index, place)
        tops = likeliest(text, value, place, self.ask.logprobs or 0) if self.ask.logprobs else {}
        return {**_scored(text, value), "top_logprobs": [_scored(t, v) for t, v in tops.items()]}


def _scored(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}
