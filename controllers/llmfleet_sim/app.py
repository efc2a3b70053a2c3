"""The API server of one simulated engine: routes, admission, answers, and how the process goes away.

In: exchanges from web/app.py. Out: answers; sequences to the engine. Prompts are never logged.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping
from time import time
from typing import Any
from uuid import uuid4

from llmfleet_sim import tokens
from llmfleet_sim.answers import Answer, ChatAnswer, CompletionAnswer, Identity
from llmfleet_sim.ask import Ask, chat_ask, completion_ask, need_object, serve_name
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import ApiError, busy, dump, engine_dead, not_json, shutting_down, unsupported_media
from llmfleet_sim.execute import Engine
from llmfleet_sim.scheduler import Sequence
from llmfleet_sim.telemetry import Telemetry
from llmfleet_sim.text import prompt_seed
from llmfleet_sim.web.app import Connection, Exchange

log = logging.getLogger("llmfleet_sim")


class Api:
    """Handles exchanges."""

    def __init__(self, config: EngineConfig, engine: Engine, telemetry: Telemetry) -> None:
        self.config = config
        self.engine = engine
        self.telemetry = telemetry
        self.draining = False
        self.open_requests = 0
        self.load = 0
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/metrics": {"GET": self._metrics},
            "/version": {"GET": lambda x: self._json(x, {"version": config.version})},
            "/load": {"GET": lambda x: self._json(x, {"server_load": self.load})},
            "/kv_event_sources": {"GET": lambda x: self._json(x, {})},
            "/v1/models": {"GET": self._models},
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
        }

    # -- listening -----------------------------------------------------------------------------

    async def listen(self, bound: socket.socket) -> None:
        """Start to listen; until now the bound port refused connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self.handle, self.config.env.keep_alive, self.connections), sock=bound, backlog=2048
        )

    def stop_listening(self) -> None:
        """Close the listener."""
        if self._server is not None:
            self._server.close()

    def in_flight(self) -> int:
        """Requests under way, and KV that still waits to be pulled."""
        return self.open_requests

    # -- dispatch ------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Answer one request; whatever goes wrong becomes an error answer."""
        exchange.on_end = lambda: self._count(exchange)
        if self.engine.faults.refuse:
            exchange.cut()
            return
        try:
            self._route(exchange)
        except ApiError as error:
            self.refuse(exchange, error)
        except Exception:
            log.exception("request failed: %s %s", exchange.method, exchange.path)
            self.refuse(exchange, ApiError(500, "Internal server error", "InternalServerError"))

    def _route(self, exchange: Exchange) -> None:
        methods = self._routes.get(exchange.path)
        if methods is None:
            self._json(exchange, {"detail": "Not Found"}, status=404)
        elif exchange.method not in methods:
            allow = [("allow", ", ".join(methods))]
            exchange.respond(405, dump({"detail": "Method Not Allowed"}), headers=allow)
        elif self._unauthorized(exchange):
            self._json(exchange, {"error": "Unauthorized"}, status=401)
        else:
            methods[exchange.method](exchange)

    def _unauthorized(self, exchange: Exchange) -> bool:
        """vLLM guards only these prefixes with --api-key."""
        if not self.config.api_keys or not exchange.path.startswith(("/v1", "/v2", "/inference", "/cohere")):
            return False
        given = exchange.headers.get("authorization", "")
        return not any(given == f"Bearer {key}" for key in self.config.api_keys)

    def refuse(self, exchange: Exchange, error: ApiError) -> None:
        """Send an error answer."""
        form = error.anthropic_body() if exchange.path.startswith("/v1/messages") else error.body()
        self._json(exchange, form, status=error.status)

    def _json(self, exchange: Exchange, value: Any, *, status: int = 200) -> None:
        exchange.respond(status, dump(value))

    def _count(self, exchange: Exchange) -> None:
        handler = exchange.path if exchange.path in self._routes else "none"
        loop = asyncio.get_running_loop()
        sizes = (len(exchange.body), exchange.sent_length)
        seconds = loop.time() - exchange.received
        self.telemetry.http(
            handler=handler, method=exchange.method, status=exchange.status, sizes=sizes, seconds=seconds
        )

    # -- small routes --------------------------------------------------------------------------

    def _health(self, exchange: Exchange) -> None:
        exchange.respond(503 if self.engine.dead else 200, b"", None)

    def _metrics(self, exchange: Exchange) -> None:
        self.telemetry.gauges(self.engine.scheduler)
        exchange.respond(200, self.telemetry.render(), "text/plain; version=1.0.0; charset=utf-8")

    def _models(self, exchange: Exchange) -> None:
        now = int(time())
        cards = [self._card(name, self.config.model, None, now) for name in self.config.names]
        parent = self.config.names[0]
        cards += [self._card(name, path, parent, now) for name, path in self.config.adapters.items()]
        self._json(exchange, {"object": "list", "data": cards})

    def _card(self, name: str, root: str, parent: str | None, now: int) -> dict[str, Any]:
        permission = {
            "id": f"modelperm-{uuid4().hex[:16]}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": now,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": None if parent else self.config.max_model_len,
            "permission": [permission],
        }

    def _tokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        serve_name(body.get("model"), self.config)
        ids = tokens.encode_chat(body["messages"]) if "messages" in body else tokens.encode(str(body.get("prompt", "")))
        texts = [tokens.token_text(t) for t in ids] if body.get("return_token_strs") else None
        self._json(
            exchange,
            {"count": len(ids), "max_model_len": self.config.max_model_len, "tokens": list(ids), "token_strs": texts},
        )

    def _detokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        serve_name(body.get("model"), self.config)
        self._json(exchange, {"prompt": tokens.decode(body.get("tokens", []))})

    # -- generation ----------------------------------------------------------------------------

    def _body(self, exchange: Exchange) -> Mapping[str, Any]:
        """Parse the body as FastAPI does."""
        kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise unsupported_media()
        try:
            return need_object(json.loads(exchange.body))
        except json.JSONDecodeError as error:
            raise not_json(error) from None

    def _completions(self, exchange: Exchange) -> None:
        ask = completion_ask(self._body(exchange), self.config)
        self._generate(exchange, ask, "cmpl", CompletionAnswer)

    def _chat(self, exchange: Exchange) -> None:
        ask = chat_ask(self._body(exchange), self.config)
        self._generate(exchange, ask, "chatcmpl", ChatAnswer)

    def _generate(self, exchange: Exchange, ask: Ask, prefix: str, form: type[Answer]) -> None:
        """Admit a request, submit its sequences, and connect the answer with the exchange."""
        if self.engine.dead:
            raise engine_dead()
        if self.draining:
            raise shutting_down()
        limit = self.config.max_num_queued_reqs
        if limit is not None and self.open_requests >= limit:
            self.telemetry.rejected("max_num_queued_reqs")
            raise busy()
        request_id = exchange.headers.get("x-request-id") or ask.request_id or uuid4().hex[:16]
        identity = Identity(
            id=f"{prefix}-{request_id}", created=int(time()), model=ask.model, fingerprint=self.config.fingerprint
        )
        answer = form(ask, identity, self.config)
        sequences = self._sequences(ask, identity.id, answer)
        self._connect(exchange, answer, sequences)
        self.engine.submit(sequences)

    def _sequences(self, ask: Ask, name: str, answer: Answer) -> list[Sequence]:
        now = asyncio.get_running_loop().time()
        salt = hash((ask.salt, ask.model if ask.model in self.config.adapters else ""))
        return [
            Sequence(
                request_id=f"{name}-{choice.index}",
                index=choice.index,
                prompt=ask.prompts[choice.prompt],
                max_tokens=ask.max_tokens[choice.prompt],
                seed=prompt_seed(
                    ask.prompts[choice.prompt], seed=ask.seed + self.config.seed, choice=choice.index % ask.n
                ),
                arrived=now,
                sink=answer,
                min_tokens=ask.min_tokens,
                ignore_eos=ask.ignore_eos,
                priority=ask.priority,
                salt=salt,
            )
            for choice in answer.choices
        ]

    def _connect(self, exchange: Exchange, answer: Answer, sequences: list[Sequence]) -> None:
        """Let events go out as they come; let a client that leaves abort its sequences."""
        self.open_requests += 1

        def gone() -> None:
            self.open_requests -= 1
            self.engine.abort(sequences)

        def close() -> None:
            self.open_requests -= 1
            if answer.ask.stream:
                exchange.finish()
            elif answer.failed is not None:
                self.refuse(exchange, answer.failed)
            else:
                exchange.respond(200, dump(answer.whole()))

        exchange.on_gone = gone
        answer.write, answer.close = exchange.event, close
        if answer.ask.stream:
            exchange.stream()
