"""Where figures come from: pages of processes and a Prometheus, with everything that can be wrong with them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from llmfleet.api.autoscaler import AutoscalerSpec
from llmfleet.kube.errors import Forbidden, NotFound
from llmfleet.kube.refs import Ref
from llmfleet.prometheus import client as prometheus
from llmfleet.prometheus.client import Prometheus
from llmfleet.prometheus.query import QueryError, may_have_token, one_of, read_vector, select, server_of
from llmfleet.scale import client
from llmfleet.scale.client import Direct
from llmfleet.scale.sources.client import Sources
from llmfleet.scale.targets import Target, Targets, engine_targets, gpu_query, router_targets
from llmfleet.telemetry import AutoscalerMetrics
from unit.scale.builders import fleet_of, spec_of

ENGINE = """vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:generation_tokens_total{engine="0"} 500.0
vllm:prompt_tokens_total{engine="0"} 900.0
"""
ROUTER = 'llmfleet_router_in_flight_requests{model="m"} 2.0\n'

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], int]]:
    """Start a server on loopback that answers so; its port."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def page(text: str, code: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = text.encode()
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def drip(request: BaseHTTPRequestHandler) -> None:
    """A page that never ends, a byte at a time."""
    request.send_response(200)
    request.end_headers()
    for _ in range(200):
        try:
            request.wfile.write(b"#")
        except OSError:
            return
        time.sleep(0.05)


def drip_headers(request: BaseHTTPRequestHandler) -> None:
    """Headers that never end."""
    for _ in range(200):
        try:
            request.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: " if _ == 0 else b"x")
        except OSError:
            return
        time.sleep(0.05)


def target(name: str, port: int) -> Target:
    return Target(name=name, pod=f"{name}-0", address="127.0.0.1", port=port)


def targets_of(engines: dict[str, int], routers: dict[str, int] | None = None, **more: Any) -> Targets:
    return Targets(
        namespace="d",
        engines=tuple(target(name, port) for name, port in engines.items()),
        routers=tuple(target(name, port) for name, port in (routers or {}).items()),
        serving=tuple(engines),
        routers_expected=len(routers or {}),
        models=frozenset({"m"}),
        **more,
    )


def test_who_answers_is_seen_and_who_does_not_is_missing(
    serve: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ASK_SECONDS", 3.0)
    monkeypatch.setattr(client, "GATHER_SECONDS", 60.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = {
            "good": serve(page(ENGINE)),
            "busy": serve(page("no", 503)),
            "proxy": serve(page("<html>bad gateway</html>")),
            "nan": serve(page(ENGINE.replace("500.0", "NaN"))),
            "slow": serve(drip),
            "slow headers": serve(drip_headers),
            "dead": 1,
            "silent": silent.getsockname()[1],
        }
        metrics = AutoscalerMetrics()
        seen = Direct(lambda: 7.0, metrics).observe(targets_of(ports, {"r": serve(page(ROUTER)), "gone": 1}))
    assert [reading.instance for reading in seen.engines] == ["good"]
    assert [(reading.router, reading.in_flight) for reading in seen.routers] == [("r", 2.0)]
    assert seen.routers_expected == 2
    failed = metrics.registry.get_sample_value(
        "llmfleet_autoscaler_scrapes_total", {"target": "engine", "result": "failed"}
    )
    assert failed == 5


def test_a_routers_page_is_asked_once_for_all_fleets(serve: Callable[[Answer], int]) -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        page(ROUTER)(request)

    direct, targets = Direct(lambda: 7.0, AutoscalerMetrics()), targets_of({}, {"r": serve(answer)})
    for _ in range(3):
        assert len(direct.observe(targets).routers) == 1
    assert asked == ["/metrics"]


def test_routers_of_the_same_name_in_two_namespaces_are_two(serve: Callable[[Answer], int]) -> None:
    direct = Direct(lambda: 7.0, AutoscalerMetrics())
    seen = [
        direct.observe(targets_of({}, {"r": serve(page(ROUTER.replace("2.0", figure)))})) for figure in ("2.0", "5.0")
    ]
    assert [reading.in_flight for one in seen for reading in one.routers] == [2.0, 5.0]


def test_who_was_too_late_is_not_asked_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(client, "THREADS", 1)
    begun, go_on = list[str](), threading.Event()

    def fetch(address: str, port: int, path: str) -> str:
        begun.append(address)
        go_on.wait(10)
        raise OSError("no route")

    monkeypatch.setattr(client, "fetch", fetch)
    direct = Direct(lambda: 7.0, AutoscalerMetrics())
    for _ in range(3):
        assert direct.observe(targets_of({"a": 1, "b": 2, "c": 3})).engines == ()
    go_on.set()
    direct._pool.shutdown(wait=True)
    assert len(begun) == 1


def pod(name: str, **changes: Any) -> dict[str, Any]:
    ports = [{"name": "http", "containerPort": 9000}]
    labels = {"serving.ai/cluster": name, "apps.kubernetes.io/pod-index": changes.get("index", "0")}
    status = {"phase": changes.get("phase", "Running"), "podIP": changes.get("ip", "10.0.0.1"), "conditions": []}
    if changes.get("ready"):
        status["conditions"] = [{"type": "Ready", "status": "True"}]
    metadata = {"name": f"{name}-0", "labels": labels, **changes.get("metadata", {})}
    return {"metadata": metadata, "spec": {"containers": [{"name": "engine", "ports": ports}]}, "status": status}


def test_rank_0_of_own_instances_is_asked_on_its_own_port() -> None:
    pods = [pod("a"), pod("a", index="1"), pod("b", phase="Pending"), pod("c", ip=""), pod("other")]
    assert engine_targets(["a", "b", "c"], pods) == (Target(name="a", pod="a-0", address="10.0.0.1", port=9000),)


def test_only_ready_routers_must_answer() -> None:
    leaving = pod("z", ready=True, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    found, expected = router_targets([pod("x", ready=True), pod("y"), leaving])
    assert ([one.name for one in found], expected) == (["x-0", "y-0", "z-0"], ("x-0",))


# Prometheus.


def posted(text: str, code: int) -> Answer:
    """A page for whoever posts, whose question is read first."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        page(text, code)(request)

    return answer


class FakePrometheus:
    """Answers by what a query contains."""

    def __init__(self, *answers: tuple[str, Any]) -> None:
        self.answers, self.queries = answers, list[str]()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        form = parse_qs(request.rfile.read(int(request.headers["Content-Length"])).decode())
        query = form["query"][0]
        self.queries.append(query)
        found = next((answer for part, answer in self.answers if part in query), vector())
        page(found if isinstance(found, str) else json.dumps(found))(request)


def vector(*samples: tuple[dict[str, str], str]) -> dict[str, Any]:
    result = [{"metric": labels, "value": [1.0, value]} for labels, value in samples]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def series(name: str, value: str, **labels: str) -> tuple[dict[str, str], str]:
    return {"__name__": name, "pod": "a-0", **labels}, value


FULL = (
    ("timestamp(vllm", vector(({"pod": "a-0"}, "990"))),
    ("timestamp(llmfleet", vector(({"pod": "r-1"}, "995"))),
    (
        "generation_tokens",
        vector(
            series("vllm:num_requests_running", "3"),
            series("vllm:num_requests_waiting", "1"),
            series("vllm:generation_tokens_total", "500"),
            series("vllm:prompt_tokens_total", "900"),
        ),
    ),
    ("llmfleet_queue_requests", vector(({"__name__": "llmfleet_queue_requests", "pod": "r-1", "model": "m"}, "4"))),
)


def test_prometheus_gives_the_same_readings_with_the_age_of_their_samples(serve: Callable[[Answer], int]) -> None:
    fake = FakePrometheus(*FULL, ("sum(up)", vector(({}, "12"))))
    source = Prometheus(f"http://127.0.0.1:{serve(fake)}/", lambda: 1000.0, AutoscalerMetrics())
    seen = source.observe(targets_of({"a": 1}, {"r": 1}, queries=(("mine", "sum(up)"),)))
    [engine], [router] = seen.engines, seen.routers
    assert (engine.instance, engine.at, engine.generated, engine.waiting) == ("a", 990.0, 500.0, 1.0)
    assert (router.router, router.at, router.queued) == ("r-1", 995.0, 4.0)
    assert seen.external == {"mine": 12.0}
    assert seen.problem == ""
    assert any('namespace="d",pod=~"a\\-0"' in query.replace("\\\\", "\\") for query in fake.queries)


@pytest.mark.parametrize(
    "answer",
    ["", "<html>", "[]", json.dumps({"status": "error", "error": "out of memory"}), json.dumps(vector(({}, "x")))],
)
def test_a_prometheus_that_answers_nonsense_is_a_problem(serve: Callable[[Answer], int], answer: str) -> None:
    source = Prometheus(f"http://127.0.0.1:{serve(FakePrometheus(('', answer)))}", lambda: 1000.0, AutoscalerMetrics())
    seen = source.observe(targets_of({"a": 1}))
    assert seen.engines == ()
    assert seen.problem.startswith("Prometheus does not answer: ")


@pytest.mark.parametrize("code", [200, 403])
@pytest.mark.parametrize(
    "answer", ['["the secret"]', "the secret", '{"error": "the secret"}', '{"status": "the secret"}']
)
def test_what_another_server_says_is_repeated_to_nobody(serve: Callable[[Answer], int], answer: str, code: int) -> None:
    source = Prometheus(f"http://127.0.0.1:{serve(posted(answer, code))}", lambda: 1000.0, AutoscalerMetrics())
    problem = source.observe(targets_of({"a": 1})).problem
    assert problem
    assert "secret" not in problem


@pytest.mark.parametrize("banner", [b"SSH-2.0-secret\r\n", b"HTTP/9.secret 200\r\n\r\n", b"-ERR secret\r\n"])
def test_the_banner_of_another_kind_of_server_is_repeated_to_nobody(
    serve: Callable[[Answer], int], banner: bytes
) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        request.wfile.write(banner)

    source = Prometheus(f"http://127.0.0.1:{serve(answer)}", lambda: 1000.0, AutoscalerMetrics())
    assert source.observe(targets_of({"a": 1})).problem == "Prometheus does not answer: no HTTP"


def test_an_error_of_a_query_is_said_in_prometheus_own_words(serve: Callable[[Answer], int]) -> None:
    answer = json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error: unexpected end"})
    source = Prometheus(f"http://127.0.0.1:{serve(posted(answer, 400))}", lambda: 1000.0, AutoscalerMetrics())
    assert source.observe(targets_of({"a": 1})).problem.endswith("400 parse error: unexpected end")


def test_a_partial_answer_is_a_problem_or_no_figure(serve: Callable[[Answer], int]) -> None:
    partial = {**vector(({}, "1")), "warnings": ["a store is down"]}
    for answers, problem in (((("sum(up)", partial),), ""), ((("timestamp(vllm", partial),), "may be partial")):
        fake = FakePrometheus(*answers, *FULL)
        source = Prometheus(f"http://127.0.0.1:{serve(fake)}", lambda: 1000.0, AutoscalerMetrics())
        seen = source.observe(targets_of({"a": 1}, {"r": 1}, queries=(("mine", "sum(up)"),)))
        assert seen.external == {}
        assert problem in seen.problem


def test_the_gpu_query_asks_only_what_serves_and_for_all_of_it() -> None:
    query = gpu_query("d", fleet_of(2, 1))
    dcgm = 'DCGM_FI_DEV_GPU_UTIL{namespace="d",pod=~"%s"}'
    mean = f"avg({dcgm % 'llama-0-[0-9]+|llama-1-[0-9]+'}) / 100"
    assert query == f"{mean} and count(count by (pod) ({dcgm % 'llama-0-0|llama-1-0'})) >= 2"


def test_a_prometheus_that_is_down_is_a_problem() -> None:
    seen = Prometheus("http://127.0.0.1:1", lambda: 1000.0, AutoscalerMetrics()).observe(targets_of({"a": 1}))
    assert "Prometheus does not answer" in seen.problem
    assert seen.serving == ("a",)


def test_an_empty_prometheus_knows_nothing_and_does_not_say_zero(serve: Callable[[Answer], int]) -> None:
    source = Prometheus(f"http://127.0.0.1:{serve(FakePrometheus())}", lambda: 1000.0, AutoscalerMetrics())
    seen = source.observe(targets_of({"a": 1}, {"r": 1}, queries=(("mine", "sum(up)"),)))
    assert (seen.engines, seen.routers, seen.external) == ((), (), {})
    assert seen.routers_expected == 1


def test_a_query_that_gives_nan_has_no_value(serve: Callable[[Answer], int]) -> None:
    fake = FakePrometheus(("sum(up)", vector(({}, "NaN"))))
    source = Prometheus(f"http://127.0.0.1:{serve(fake)}", lambda: 1000.0, AutoscalerMetrics())
    assert source.observe(targets_of({}, queries=(("mine", "sum(up)"),))).external == {}


def read_first(answer: Answer) -> Answer:
    """The same answer to whoever posts."""

    def after(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        answer(request)

    return after


@pytest.mark.parametrize("slowly", [drip, drip_headers])
def test_a_prometheus_that_drips_holds_nobody(
    serve: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch, slowly: Answer
) -> None:
    monkeypatch.setattr(prometheus, "ASK_SECONDS", 0.3)
    source = Prometheus(f"http://127.0.0.1:{serve(read_first(slowly))}", lambda: 1000.0, AutoscalerMetrics())
    assert re.search("too slow|timed out", source.observe(targets_of({"a": 1})).problem)


def test_all_questions_about_one_fleet_share_their_time(
    serve: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "LOOK_SECONDS", 1.0)
    fake = FakePrometheus(*FULL)

    def late(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.4)
        fake(request)

    source = Prometheus(f"http://127.0.0.1:{serve(late)}", lambda: 1000.0, AutoscalerMetrics())
    queries = tuple((f"q{number}", f"sum(up{number})") for number in range(20))
    assert "Prometheus does not answer" in source.observe(targets_of({"a": 1}, queries=queries)).problem
    assert len(fake.queries) < 5


def test_a_long_answer_is_not_read_to_its_end(serve: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_ANSWER", 100_000)
    sent = [0]

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while sent[0] < 100_000_000:
                sent[0] += request.wfile.write(b" " * 100_000)
        except OSError:
            return

    source = Prometheus(f"http://127.0.0.1:{serve(read_first(endless))}", lambda: 1000.0, AutoscalerMetrics())
    assert "too long" in source.observe(targets_of({"a": 1})).problem
    assert sent[0] < 50_000_000


def test_an_answer_is_never_unpacked(serve: Callable[[Answer], int]) -> None:
    packed = gzip.compress(json.dumps(vector()).encode())

    def zipped(request: BaseHTTPRequestHandler) -> None:
        assert request.headers["Accept-Encoding"] == "identity"
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(packed)))
        request.end_headers()
        request.wfile.write(packed)

    source = Prometheus(f"http://127.0.0.1:{serve(read_first(zipped))}", lambda: 1000.0, AutoscalerMetrics())
    assert "no JSON" in source.observe(targets_of({"a": 1})).problem


@pytest.mark.parametrize(
    "data",
    [
        [1],
        5,
        {"resultType": "vector", "result": [1]},
        {"resultType": "vector", "result": 5},
        {"resultType": "vector", "result": {"metric": {}}},
        {"resultType": "vector", "result": [{"metric": {"pod": 1}, "value": [1, "1"]}]},
        {"resultType": "vector", "result": [{"metric": [["pod", "a"]], "value": [1, "1"]}]},
        {"resultType": "vector", "result": [{"metric": {}, "value": [1, 10**400]}]},
        {"resultType": "vector", "result": [{"metric": {}, "value": "12"}]},
        {"resultType": ["vector"], "result": []},
        {"resultType": "scalar", "result": {"1": "2"}},
        "deep",
    ],
)
def test_json_of_another_form_is_a_problem_and_no_accident(serve: Callable[[Answer], int], data: object) -> None:
    text = "[" * 100_000 if data == "deep" else json.dumps({"status": "success", "data": data})
    source = Prometheus(f"http://127.0.0.1:{serve(FakePrometheus(('', text)))}", lambda: 1000.0, AutoscalerMetrics())
    assert source.observe(targets_of({"a": 1})).problem.startswith("Prometheus does not answer: ")


@pytest.mark.parametrize("address", ["http://p:99999", "http://[::1", "ftp://p", "http://", "http://p\n:1/é", "p:9090"])
def test_an_address_that_is_none_is_a_problem(address: str) -> None:
    seen = Prometheus(address, lambda: 1000.0, AutoscalerMetrics()).observe(targets_of({"a": 1}))
    assert seen.problem.startswith("Prometheus does not answer: ")


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("https://prometheus.example.com", True),
        ("http://prometheus:9090", True),
        ("http://prometheus.monitoring.svc:9090/base", True),
        ("http://prometheus.monitoring.svc.cluster.local", True),
        ("http://127.0.0.1:9090", True),
        ("http://prometheus.monitoring:9090", False),
        ("http://prometheus.example.com", False),
        ("http://prometheus.monitoring.svc.example.com", False),
        ("http://10.0.0.1", False),
        ("http://134744072", False),
        ("http://0x08080808", False),
        ("http://[fd00::1]", False),
    ],
)
def test_a_token_goes_where_nobody_can_read_it_on_the_way(address: str, may: bool) -> None:
    assert may_have_token(server_of(address)) is may


def test_a_token_is_not_sent_in_the_clear_and_it_is_said_what_to_write() -> None:
    asked: list[str] = []

    def token() -> str:
        asked.append("token")
        return "x"

    source = Prometheus("http://192.0.2.1:9090", lambda: 1000.0, AutoscalerMetrics(), token)
    assert "a token goes over https only" in source.observe(targets_of({"a": 1})).problem
    assert asked == []


class Secrets:
    """An apiserver with one Secret, or with what went wrong."""

    def __init__(self, data: dict[str, str] | Exception) -> None:
        self.data, self.asked = data, list[str]()

    def get(self, ref: Ref) -> dict[str, Any]:
        self.asked.append(str(ref))
        if isinstance(self.data, Exception):
            raise self.data
        return {"data": self.data}


def prometheus_with_token(port: int) -> AutoscalerSpec:
    prometheus = {"address": f"http://127.0.0.1:{port}", "bearerTokenSecretRef": {"name": "reader"}}
    return spec_of({"source": {"type": "Prometheus", "prometheus": prometheus}})


def test_a_token_is_sent_to_prometheus_and_read_again_after_a_minute(serve: Callable[[Answer], int]) -> None:
    sent: list[str | None] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        sent.append(request.headers["Authorization"])
        FakePrometheus(*FULL)(request)

    now = [1000.0]
    secrets = Secrets({"token": base64.b64encode(b"first\n").decode()})
    sources = Sources(secrets, lambda: now[0], AutoscalerMetrics())  # type: ignore[arg-type]
    spec = prometheus_with_token(serve(answer))
    for _ in range(2):
        assert sources.of(spec, "d").observe(targets_of({"a": 1})).problem == ""
    assert secrets.asked == ["Secret d/reader"]
    assert set(sent) == {"Bearer first"}
    secrets.data = {"token": base64.b64encode(b"second").decode()}
    now[0] += 61
    sources.of(spec, "d").observe(targets_of({"a": 1}))
    assert sent[-1] == "Bearer second"


def test_the_token_of_one_namespace_is_not_used_for_another(serve: Callable[[Answer], int]) -> None:
    secrets = Secrets({"token": base64.b64encode(b"x").decode()})
    sources = Sources(secrets, lambda: 1000.0, AutoscalerMetrics())  # type: ignore[arg-type]
    spec = prometheus_with_token(serve(FakePrometheus(*FULL)))
    for namespace in ("d", "e"):
        sources.of(spec, namespace).observe(targets_of({"a": 1}))
    assert secrets.asked == ["Secret d/reader", "Secret e/reader"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (NotFound("no such thing"), "Secret d/reader cannot be read: no such thing"),
        (Forbidden("may not get secrets"), "Secret d/reader cannot be read: may not get secrets"),
        ({"other": "eA=="}, "Secret d/reader has no token under the key token"),
        ({"token": "not base64"}, "Secret d/reader has no token under the key token"),
        ({"token": "w6k="}, "Secret d/reader has no token under the key token"),
        ({"token": "eA0KSG9zdDogeQ=="}, "Secret d/reader has no token under the key token"),
    ],
)
def test_a_token_that_cannot_be_had_is_a_problem_and_nothing_is_asked_without_it(
    serve: Callable[[Answer], int], data: Any, problem: str
) -> None:
    fake = FakePrometheus(*FULL)
    sources = Sources(Secrets(data), lambda: 1000.0, AutoscalerMetrics())  # type: ignore[arg-type]
    seen = sources.of(prometheus_with_token(serve(fake)), "d").observe(targets_of({"a": 1}))
    assert problem in seen.problem
    assert (fake.queries, seen.engines) == ([], ())


def test_a_token_is_not_carried_to_another_address(serve: Callable[[Answer], int]) -> None:
    followed: list[str | None] = []

    def thief(request: BaseHTTPRequestHandler) -> None:
        followed.append(request.headers["Authorization"])

    def moved(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_response(302)
        request.send_header("Location", f"http://127.0.0.1:{port}/")
        request.send_header("Content-Length", "0")
        request.end_headers()

    port = serve(thief)
    secrets = Secrets({"token": base64.b64encode(b"x").decode()})
    sources = Sources(secrets, lambda: 1000.0, AutoscalerMetrics())  # type: ignore[arg-type]
    seen = sources.of(prometheus_with_token(serve(moved)), "d").observe(targets_of({"a": 1}))
    assert "302" in seen.problem
    assert followed == []


def test_names_and_labels_are_quoted() -> None:
    assert select(["vllm:a"], 'n"s', pod=["a.b"]) == '{__name__=~"vllm:a",namespace="n\\"s",pod=~"a\\\\.b"}'
    assert one_of(["b", "a"]) == '"a|b"'


def test_a_matrix_is_no_vector() -> None:
    with pytest.raises(QueryError):
        list(read_vector({"status": "success", "data": {"resultType": "matrix", "result": []}}))
