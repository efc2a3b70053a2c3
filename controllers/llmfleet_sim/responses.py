"""OpenAI's /v1/responses without a store: one message out, its events in the order vLLM sends them.

In: a responses body, then generated words. Out: an Ask, then bodies and numbered events. Pure.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmfleet_sim.answers import Answer, Choice
from llmfleet_sim.ask import Ask, chat_ask, plain_messages, serve_name
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import ApiError, bad_request
from llmfleet_sim.fields import Fields

_NO_STORE = (
    "This vLLM engine does not support `store=True` and therefore does not support the background mode. "
    "To enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when "
    "launching the vLLM server."
)


def not_found(response_id: str) -> ApiError:
    """Refuse a response that nobody stored."""
    return ApiError(404, f"Response with id '{response_id}' not found.", "invalid_request_error", "response_id")


def responses_ask(body: Mapping[str, Any], config: EngineConfig) -> Ask:
    """Read /v1/responses as the chat request it means."""
    fields = Fields(body)
    fields.need("input")
    name, limit = fields.string("model"), fields.integer("max_output_tokens")
    temperature, top_p = fields.number("temperature"), fields.number("top_p")
    fields.check()
    serve_name(name, config)
    if body.get("background"):
        raise ApiError(400, _NO_STORE, "invalid_request_error", "background")
    if body.get("previous_response_id"):
        raise not_found(str(body["previous_response_id"]))
    if limit is not None and limit > config.max_model_len:
        message = (
            f"max_output_tokens={limit} cannot be greater than max_model_len={config.max_model_len}. "
            "Please request fewer output tokens."
        )
        raise bad_request(message, "max_output_tokens", limit)
    chat = {k: body[k] for k in ("model", "temperature", "top_p", "stream", "priority", "ignore_eos") if k in body}
    chat["messages"] = plain_messages(body["input"], body.get("instructions"))
    chat["max_completion_tokens"] = limit
    chat["kv_transfer_params"] = body.get("kv_transfer_params")
    ask = chat_ask(chat, config)
    extra = {
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "max_output_tokens": ask.max_tokens[0],
        "user": body.get("user"),
    }
    return replace(ask, extra=extra)


class ResponsesAnswer(Answer):
    """/v1/responses."""

    constant_frames = False
    truncated_on_error = True
    _number = 0

    @property
    def _message_id(self) -> str:
        return "msg_" + self.identity.id.removeprefix("resp_")[::-1]

    def numbered(self, kind: str, **body: Any) -> bytes:
        """Frame one event with the next sequence number; keys in alphabetical order, as recorded."""
        whole = dict(sorted({**body, "sequence_number": self._number, "type": kind}.items()))
        self._number += 1
        return f"event: {kind}\n".encode() + self.event(whole)

    def _state(self, *, done: bool) -> dict[str, Any]:
        extra = self.ask.extra or {}
        cut = done and self.choices[0].finish == "length"
        return {
            "id": self.identity.id,
            "created_at": self.identity.created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": extra["instructions"],
            "metadata": extra["metadata"],
            "model": self.identity.model,
            "object": "response",
            "output": [self._message("completed")] if done else [],
            "parallel_tool_calls": True,
            "temperature": extra["temperature"],
            "tool_choice": "none",
            "tools": [],
            "top_p": extra["top_p"],
            "background": False,
            "max_output_tokens": extra["max_output_tokens"],
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": ("incomplete" if cut else "completed") if done else "in_progress",
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "user": extra["user"],
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": self.transfer,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        cached = self.choices[0].cached if self.config.prompt_details else 0
        read = {"cached_tokens": cached, "cache_write_tokens": 0}
        return {
            "input_tokens": prompt,
            "input_tokens_details": {**read, "input_tokens_per_turn": [], "cached_tokens_per_turn": []},
            "output_tokens": completion,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + completion,
        }

    def _part(self, text: str, *, opening: bool = False) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": [] if opening else None}

    def _message(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part(self.choices[0].text)]
        return {
            "id": self._message_id,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def greeting(self) -> list[bytes]:
        """What is sent before the engine has done anything."""
        return [
            self.numbered("response.created", response=self._state(done=False)),
            self.numbered("response.in_progress", response=self._state(done=False)),
        ]

    def opening(self) -> list[bytes]:
        """The message and its part."""
        where = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        part = self._part("", opening=True)
        return [
            self.numbered("response.output_item.added", item=self._message("in_progress"), output_index=0),
            self.numbered("response.content_part.added", part=part, **where),
        ]

    def chunk(self, choice: Choice, text: str, first: int) -> bytes:
        """A text delta; empty text makes no event."""
        if not text:
            return b""
        where = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        return self.numbered("response.output_text.delta", delta=text, logprobs=[], **where)

    def closing(self) -> list[bytes]:
        """The ends of part, message and response."""
        text = self.choices[0].text
        where = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        return [
            self.numbered("response.output_text.done", text=text, logprobs=[], **where),
            self.numbered("response.content_part.done", part=self._part(text), **where),
            self.numbered("response.output_item.done", item=self._message("completed"), output_index=0),
            self.numbered("response.completed", response=self._state(done=True)),
        ]

    def error_events(self) -> list[bytes]:
        """Say nothing: vLLM lets the error through to the server, which breaks the stream off."""
        return []

    def whole(self) -> Any:
        """The unary body."""
        return self._state(done=True)
