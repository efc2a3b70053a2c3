"""Anthropic's /v1/messages on top of the chat answer: the request's other names, the events' other shape.

In: a messages body, then generated words. Out: an Ask, then Anthropic bodies and events. Pure.
"""

from collections.abc import Mapping
from typing import Any

from llmfleet_sim.answers import Answer, Choice
from llmfleet_sim.ask import Ask, chat_ask, plain_messages
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import Problem
from llmfleet_sim.fields import Fields
from llmfleet_sim.tokens import encode_chat

_STOP_REASONS = {"length": "max_tokens", "stop": "end_turn"}
_CONVERTER_TRIPPED = (
    "2 validation errors for ChatCompletionStreamResponse\nmodel\n  Field required\nchoices\n  Field required"
)


def messages_ask(body: Mapping[str, Any], config: EngineConfig) -> Ask:
    """Read /v1/messages as the chat request it means."""
    fields = Fields(body)
    fields.need("model", "messages", "max_tokens")
    fields.string("model")
    items, limit = fields.items("messages"), fields.integer("max_tokens", nullable=False)
    if limit is not None and limit < 1:
        text = "Value error, max_tokens must be positive"
        context = {"error": ValueError("max_tokens must be positive")}
        fields.problems.append(Problem("value_error", "body.max_tokens", text, limit, context))
    fields.check()
    chat = {
        k: v for k, v in body.items() if k not in ("max_tokens", "stop_sequences", "system", "tools", "tool_choice")
    }
    chat["messages"] = plain_messages(items, body.get("system"))
    chat["max_completion_tokens"] = limit
    chat["stop"] = body.get("stop_sequences") or []
    if body.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat_ask(chat, config)


def count_tokens(body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer /v1/messages/count_tokens."""
    fields = Fields(body)
    fields.need("model", "messages")
    items = fields.items("messages")
    fields.check()
    count = len(encode_chat(plain_messages(items, body.get("system"))))
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}


class MessagesAnswer(Answer):
    """/v1/messages."""

    def event(self, body: Any) -> bytes:
        """Name the event by its type."""
        return b"event: " + str(body["type"]).encode() + b"\n" + super().event(body)

    def _usage(self) -> dict[str, Any]:
        return {"input_tokens": self.prompt_tokens, "output_tokens": self.completion_tokens}

    def _head(self) -> dict[str, Any]:
        return {"id": self.identity.id, "type": "message", "role": "assistant"}

    def _stop_reason(self, choice: Choice) -> str | None:
        """Name the end in Anthropic's words; an answer cut short by the engine has none."""
        return "stop_sequence" if choice.stop_reason else _STOP_REASONS.get(choice.finish)

    def opening(self) -> list[bytes]:
        """The message and its one block."""
        message = {
            **self._head(),
            "content": [],
            "model": self.identity.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
        return [self.event({"type": "message_start", "message": message}), self.event(block)]

    def chunk(self, choice: Choice, text: str, first: int) -> bytes:
        """A text delta; empty text makes no event."""
        if not text:
            return b""
        delta = {"type": "text_delta", "text": text}
        return self.event({"type": "content_block_delta", "delta": delta, "index": 0})

    def closing(self) -> list[bytes]:
        """The ends of block and message."""
        choice = self.choices[0]
        delta = {"stop_reason": self._stop_reason(choice), "stop_sequence": choice.stop_reason}
        return [
            self.event({"type": "content_block_stop", "index": 0}),
            self.event({"type": "message_delta", "delta": delta, "usage": self._usage()}),
            self.event({"type": "message_stop"}),
        ]

    def error_events(self) -> list[bytes]:
        """The error of a stream: vLLM trips over its own chat event here, and says that."""
        inner = {"type": "internal_error", "message": _CONVERTER_TRIPPED}
        return [self.event({"type": "error", "error": inner})]

    def whole(self) -> Any:
        """The unary body."""
        choice = self.choices[0]
        reason = self._stop_reason(choice)
        stop: dict[str, Any] = {"stop_reason": reason} if reason else {}
        stop |= {"stop_sequence": choice.stop_reason} if choice.stop_reason else {}
        return {
            **self._head(),
            "content": [{"type": "text", "text": choice.text}],
            "model": self.identity.model,
            **stop,
            "usage": self._usage(),
            **({"kv_transfer_params": self.transfer} if self.transfer else {}),
        }
