"""The answers of /v1/completions, byte for byte in vLLM's key order.

In: the words of an Ask's sequences. Out: the unary body or its events. Pure.
"""

from typing import Any

from llmfleet_sim.answers import DONE, Answer, Choice, likeliest, present, stamp
from llmfleet_sim.text import TEXTS, logprob_at


class CompletionAnswer(Answer):
    """/v1/completions."""

    def _base(self, object_name: str = "text_completion") -> dict[str, Any]:
        who = self.identity
        return {"id": who.id, "object": object_name, "created": who.created, "model": who.model}

    def chunk(self, choice: Choice, text: str, first: int) -> bytes:
        """One text event."""
        show_prompt = first == 0 and (self.ask.token_ids or self.ask.echo)
        entry = {
            "index": choice.index,
            "text": text,
            "logprobs": self._logprobs(choice, first),
            "finish_reason": choice.finish or None,
            "stop_reason": choice.stop_reason,
            "prompt_token_ids": list(self.ask.prompts[choice.prompt]) if show_prompt else None,
            "token_ids": self.tokens(choice, first),
        }
        body = {**self._base(), "choices": [entry]}
        if self.ask.continuous_usage:
            body["usage"] = self.usage()
        if choice.finish and not self.ask.usage:
            body = stamp(body, self.identity)
        return self.event(body)

    def closing(self) -> list[bytes]:
        """Usage where asked for, then the end mark."""
        if not self.ask.usage:
            return [DONE]
        body = stamp({**self._base(), "choices": [], "usage": self.last_usage()}, self.identity)
        return [self.event({**body, **present(self.metrics)}), DONE]

    def whole(self) -> Any:
        """The unary body."""
        return {
            **self._base(),
            "choices": [self._entry(c) for c in self.choices],
            "service_tier": None,
            "system_fingerprint": self.identity.fingerprint,
            "usage": self.usage(prompt_tokens_details=self.details(), completion_tokens_details=None),
            "kv_transfer_params": self.transfer,
            "ec_transfer_params": None,
            "metrics": self.metrics,
        }

    def _entry(self, choice: Choice) -> dict[str, Any]:
        prompt = list(self.ask.prompts[choice.prompt]) if self.ask.token_ids else None
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice, 0),
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": self.tokens(choice),
            "prompt_logprobs": None,
            "prompt_token_ids": prompt,
            "routed_experts": None,
        }

    def _logprobs(self, choice: Choice, first: int) -> dict[str, Any] | None:
        count = self.ask.logprobs
        if count is None:
            return None
        places = range(first, len(choice.words))
        texts = [TEXTS[choice.words[p]] if choice.words[p] >= 0 else "" for p in places]
        own = [logprob_at(choice.index, p) for p in places]
        offsets, at = [], sum(len(TEXTS[w]) for w in choice.words[:first] if w >= 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        tops = [likeliest(text, value, p, count) for text, value, p in zip(texts, own, places, strict=True)]
        return {"text_offset": offsets, "token_logprobs": own, "tokens": texts, "top_logprobs": tops}
