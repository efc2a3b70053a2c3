"""The API server of one simulated engine: routes, admission, and the tie between answers and connections.

In: exchanges from web/app.py. Out: answers; sequences to the engine. Prompts are never logged.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from time import time
from typing import Any

from llmfleet_sim import static
from llmfleet_sim.answers import Answer, Identity
from llmfleet_sim.ask import Ask, chat_ask, completion_ask, header_priority, need_object
from llmfleet_sim.chat import ChatAnswer
from llmfleet_sim.completions import CompletionAnswer
from llmfleet_sim.config import EngineConfig
from llmfleet_sim.errors import (
    ApiError,
    Problem,
    Unhandled,
    busy,
    dump,
    engine_dead,
    invalid,
    not_json,
    shutting_down,
    unreadable,
    unsupported_media,
)
from llmfleet_sim.execute import Engine
from llmfleet_sim.messages import MessagesAnswer, count_tokens, messages_ask
from llmfleet_sim.nixl.params import KillsEngine, offers, read_pull
from llmfleet_sim.responses import ResponsesAnswer, not_found, responses_ask
from llmfleet_sim.scheduler import Sequence
from llmfleet_sim.telemetry import Telemetry
from llmfleet_sim.text import prompt_seed
from llmfleet_sim.web.app import Connection, Exchange

log = logging.getLogger("llmfleet_sim")
Routes = dict[str, dict[str, Callable[[Exchange], None]]]
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")


def new_id() -> str:
    """Make the 16 hex digits that vLLM uses for ids."""
    return os.urandom(8).hex()


class Api:
    """Handles exchanges."""

    def __init__(self, config: EngineConfig, engine: Engine, telemetry: Telemetry) -> None:
        self.config = config
        self.engine = engine
        self.telemetry = telemetry
        self.draining = False
        self.open_requests = 0
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._routes = self._table()

    def _table(self) -> Routes:
        """Every route by path and method."""
        post: dict[str, Callable[[Exchange], None]] = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
            "/v1/responses": self._responses,
            "/v1/messages": self._messages,
            "/v1/messages/count_tokens": self._value(count_tokens),
            "/invocations": self._invocations,
            "/tokenize": self._value(lambda body: static.tokenized(body, self.config)),
            "/detokenize": self._value(lambda body: static.detokenized(body, self.config)),
            "/is_scaling_elastic_ep": self._fixed(lambda: {"is_scaling_elastic_ep": False}),
            "/scale_elastic_ep": self._refusal(static.scaling_refused),
        }
        get: dict[str, Callable[[Exchange], None]] = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/version": self._fixed(lambda: {"version": self.config.version}),
            "/load": self._fixed(lambda: {"server_load": self._load()}),
            "/kv_event_sources": self._fixed(dict),
            "/v1/models": self._fixed(lambda: static.model_list(self.config, now=int(time()), new_id=new_id)),
            "/openapi.json": self._fixed(lambda: static.openapi(self._routes)),
        }
        post |= {path: self._refusal(static.scale_out_disabled) for path in static.SCALE_OUT_ROUTES}
        table: Routes = {path: {"POST": handler} for path, handler in post.items()}
        table |= {path: {"GET": handler} for path, handler in get.items()}
        table["/ping"] = {"GET": self._health, "POST": self._health}
        return table

    # -- listening -----------------------------------------------------------------------------

    async def listen(self, bound: socket.socket) -> None:
        """Start to listen; until now the bound port refused connections."""
        loop = asyncio.get_running_loop()
        keep_alive = self.config.env.keep_alive
        self._server = await loop.create_server(
            lambda: Connection(self.handle, keep_alive, self.connections), sock=bound, backlog=2048
        )

    def stop_listening(self) -> None:
        """Close the listener and the connections that carry nothing."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            if not connection.busy:
                connection.close()

    def in_flight(self) -> int:
        """Requests under way, and KV that still waits to be pulled."""
        held = self.engine.side.held if self.engine.side is not None else 0
        return self.open_requests + held

    # -- dispatch ------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Answer one request; whatever goes wrong becomes an error answer."""
        if self.engine.faults.refuse:
            exchange.cut()
            return
        exchange.on_end = lambda: self._count(exchange)
        if self.config.request_id_headers:
            exchange.extra.append(("x-request-id", exchange.headers.get("x-request-id") or new_id() + new_id()))
        try:
            self._route(exchange)
        except ApiError as error:
            self.refuse(exchange, error)
        except Exception:
            log.exception("request failed: %s %s", exchange.method, exchange.path)
            self.refuse(exchange, ApiError(500, "Internal server error", "InternalServerError"))

    def _route(self, exchange: Exchange) -> None:
        methods = self._routes.get(exchange.path) or self._stored_response(exchange.path)
        if methods is None:
            self._unknown(exchange)
        elif self._unauthorized(exchange):
            exchange.respond(401, dump({"error": "Unauthorized"}))
        elif exchange.method not in methods:
            allow = [("allow", ", ".join(methods))]
            exchange.respond(405, dump({"detail": "Method Not Allowed"}), headers=allow)
        else:
            methods[exchange.method](exchange)

    def _stored_response(self, path: str) -> dict[str, Callable[[Exchange], None]] | None:
        """No response is ever stored: reading and cancelling one is a 404 that names it."""
        head, _, rest = path.partition("/v1/responses/")
        name, _, action = rest.partition("/")
        if head or not name or action not in ("", "cancel"):
            return None
        return {"POST" if action else "GET": self._refusal(lambda: not_found(name))}

    def _unknown(self, exchange: Exchange) -> None:
        bare = exchange.path.rstrip("/")
        if exchange.path.endswith("/") and bare in self._routes:
            place = f"http://{exchange.headers.get('host', '')}{bare}"
            exchange.respond(307, kind=None, trailers=[("location", place)])
        else:
            exchange.respond(404, dump({"detail": "Not Found"}))

    def _unauthorized(self, exchange: Exchange) -> bool:
        """vLLM guards only some prefixes with --api-key."""
        if not self.config.api_keys or not exchange.path.startswith(_GUARDED):
            return False
        given = exchange.headers.get("authorization", "")
        return not any(given == f"Bearer {key}" for key in self.config.api_keys)

    def refuse(self, exchange: Exchange, error: ApiError) -> None:
        """Send an error answer."""
        exchange.vary = not isinstance(error, Unhandled)
        anthropic = exchange.path.startswith("/v1/messages") and error.kind != "Bad Request"
        exchange.respond(error.status, dump(error.anthropic_body() if anthropic else error.body()))

    def _count(self, exchange: Exchange) -> None:
        self.telemetry.http(
            handler=exchange.path if exchange.path in self._routes else "none",
            method=exchange.method,
            status=exchange.status,
            sizes=(len(exchange.body), exchange.sent_length),
            seconds=asyncio.get_running_loop().time() - exchange.received,
        )

    # -- small routes --------------------------------------------------------------------------

    def _fixed(self, make: Callable[[], Any]) -> Callable[[Exchange], None]:
        return lambda exchange: exchange.respond(200, dump(make()))

    def _value(self, make: Callable[[Mapping[str, Any]], Any]) -> Callable[[Exchange], None]:
        return lambda exchange: exchange.respond(200, dump(make(self._body(exchange))))

    def _refusal(self, make: Callable[[], ApiError]) -> Callable[[Exchange], None]:
        return lambda exchange: self.refuse(exchange, make())

    def _health(self, exchange: Exchange) -> None:
        exchange.respond(503 if self.engine.dead else 200, b"", None)

    def _metrics(self, exchange: Exchange) -> None:
        self.telemetry.gauges(self.engine.scheduler)
        exchange.respond(200, self.telemetry.render(), "text/plain; version=1.0.0; charset=utf-8")

    def _load(self) -> int:
        return self.open_requests if self.config.load_tracking else 0

    # -- generation ----------------------------------------------------------------------------

    def _body(self, exchange: Exchange) -> Mapping[str, Any]:
        """Parse the body as FastAPI does."""
        kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not exchange.body:
            raise invalid([Problem("missing", "body", "Field required", None)])
        if kind != "application/json":
            raise unsupported_media()
        try:
            return need_object(json.loads(exchange.body))
        except json.JSONDecodeError as error:
            raise not_json(error) from None
        except UnicodeDecodeError:
            raise unreadable() from None

    def _completions(self, exchange: Exchange) -> None:
        self._generate(exchange, completion_ask(self._body(exchange), self.config), "cmpl-", CompletionAnswer)

    def _chat(self, exchange: Exchange) -> None:
        self._generate(exchange, chat_ask(self._body(exchange), self.config), "chatcmpl-", ChatAnswer)

    def _responses(self, exchange: Exchange) -> None:
        self._generate(exchange, responses_ask(self._body(exchange), self.config), "resp_", ResponsesAnswer)

    def _messages(self, exchange: Exchange) -> None:
        self._generate(exchange, messages_ask(self._body(exchange), self.config), "chatcmpl-", MessagesAnswer)

    def _invocations(self, exchange: Exchange) -> None:
        """SageMaker's route: chat with messages, completions without; no key protects it."""
        (self._chat if "messages" in self._body(exchange) else self._completions)(exchange)

    def _generate(self, exchange: Exchange, ask: Ask, prefix: str, form: type[Answer]) -> None:
        """Admit a request, submit its sequences, and connect the answer with the exchange."""
        self._admit()
        name = prefix + (exchange.headers.get("x-request-id") or ask.request_id or new_id())
        # An alias answers under the first served name, an adapter under its own.
        shown = ask.model if ask.model in self.config.adapters else self.config.names[0]
        who = Identity(id=name, created=int(time()), model=shown, fingerprint=self.config.fingerprint)
        answer = form(ask, who, self.config)
        priority = header_priority(exchange.headers.get("x-vllm-priority"), ask.priority)
        places = range(len(answer.choices))
        sequences = [self._sequence(ask, answer, name, index, priority) for index in places]
        self._connect(exchange, answer, sequences)
        try:
            pull = read_pull(ask.transfer) if self.config.connector else None
        except KillsEngine as error:
            self.engine.submit(sequences)
            self.engine.die(str(error))
            return
        self.engine.submit(sequences, pull)

    def _admit(self) -> None:
        """Refuse what a dead, draining or full engine refuses."""
        if self.engine.dead:
            raise engine_dead()
        if self.draining:
            raise shutting_down()
        limit = self.config.max_num_queued_reqs
        if limit is not None and self.open_requests >= limit:
            self.telemetry.rejected("max_num_queued_reqs")
            raise busy()

    def _sequence(self, ask: Ask, answer: Answer, name: str, index: int, priority: int) -> Sequence:
        prompt = ask.prompts[index // ask.n]
        adapter = ask.model if ask.model in self.config.adapters else ""
        return Sequence(
            request_id=f"{name}-{index}",
            index=index,
            prompt=prompt,
            max_tokens=ask.max_tokens[index // ask.n],
            seed=prompt_seed(prompt, seed=ask.seed + self.config.seed, choice=index % ask.n),
            arrived=asyncio.get_running_loop().time(),
            sink=answer,
            min_tokens=ask.min_tokens,
            ignore_eos=ask.ignore_eos,
            priority=priority,
            salt=hash((ask.salt, adapter)),
            hold_after=self.config.connector is not None and offers(ask.transfer),
        )

    def _connect(self, exchange: Exchange, answer: Answer, sequences: list[Sequence]) -> None:
        """Let events go out as they come; let a client that leaves abort its sequences."""
        self.open_requests += 1

        def gone() -> None:
            self.open_requests -= 1
            answer.open = 0
            self.engine.abort(sequences)

        def close() -> None:
            self.open_requests -= 1
            if answer.ask.stream and answer.failed is not None and answer.truncated_on_error:
                exchange.truncate()
            elif answer.ask.stream:
                exchange.finish()
            elif answer.failed is not None:
                self.refuse(exchange, answer.failed)
            else:
                exchange.respond(200, dump(answer.whole()), headers=self._orca(exchange))

        exchange.on_gone = gone
        answer.write, answer.close, answer.cut = exchange.event, close, exchange.cut
        if answer.ask.stream:
            exchange.stream()
            for event in answer.greeting():
                exchange.event(event)
            self._keep_alive(exchange, answer)

    def _orca(self, exchange: Exchange) -> list[tuple[str, str]]:
        form = exchange.headers.get("endpoint-load-metrics-format", "")
        return static.orca(form, len(self.engine.scheduler.waiting), self.engine.scheduler.pool.usage)

    def _keep_alive(self, exchange: Exchange, answer: Answer) -> None:
        """Send a comment now and then until the first token, where --sse-keep-alive-interval asks for it."""
        seconds = self.config.keep_alive_interval
        if not seconds:
            return

        def beat() -> None:
            if not answer.started and not exchange.ended:
                exchange.event(b": keep-alive\n\n")
                asyncio.get_running_loop().call_later(seconds, beat)

        asyncio.get_running_loop().call_later(seconds, beat)
