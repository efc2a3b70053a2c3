"""`llmfleet helm-test` against a router of ten lines that answers what each test tells it to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.ports import free_port
from llmfleet.helmtest.main import command

MODELS = json.dumps({"object": "list", "data": [{"id": "tiny"}, {"id": "sql"}]})
CHAT = json.dumps(
    {
        "choices": [{"message": {"role": "assistant", "content": "Hello fleet"}, "finish_reason": "length"}],
        "usage": {"completion_tokens": 2},
    }
)


def chunk(text: str = "", **more: Any) -> str:
    """One server-sent event of a chat stream."""
    choices = [{"index": 0, "delta": {"content": text}}] if text else []
    return f"data: {json.dumps({'choices': choices} | more, ensure_ascii=False)}\n\n"


USAGE = chunk(usage={"completion_tokens": 2})
DONE = "data: [DONE]\n\n"
STREAM = chunk("Hello") + chunk(" fl\u2028\u00e9et") + USAGE + DONE

Answer = tuple[int, str] | tuple[int, str, dict[str, str]]
Serve = Callable[[Mapping[str, list[Answer]]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a router that gives each path's answers in turn, the last one for ever; everything else is 404."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Mapping[str, list[Answer]]) -> str:
        class Router(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                queue = answers.get(self.path, [(404, "{}")])
                status, body, *more = queue.pop(0) if len(queue) > 1 else queue[0]
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(status)
                self.send_header(
                    "content-type", "text/event-stream" if body.startswith("data:") else "application/json"
                )
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Router)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_a_listed_model_passes(serve: Serve) -> None:
    result = run("models", "--url", serve({"/v1/models": [(200, MODELS)]}), "--model", "tiny")
    assert (result.exit_code, "models listed: tiny, sql" in result.output) == (0, True)


def test_one_of_several_models_that_is_missing_fails(serve: Serve) -> None:
    url = serve({"/v1/models": [(200, MODELS)]})
    result = run("models", "--url", url, "--model", "tiny", "--model", "gone")
    assert (result.exit_code, "'gone' is not among the models listed: tiny, sql" in result.output) == (1, True)


def page_of(requests: int, tokens: int, model: str = "tiny") -> tuple[int, str]:
    """A metrics page of a router."""
    return (
        200,
        f'# TYPE llmfleet_router_requests counter\nllmfleet_router_requests_total{{model="{model}"}} {requests}\n'
        "# TYPE llmfleet_router_completion_tokens counter\n"
        f'llmfleet_router_completion_tokens_total{{model="{model}"}} {tokens}\n',
    )


def metrics(serve: Serve, *pages: Answer) -> Result:
    url = serve({"/v1/chat/completions": [(200, CHAT)], "/metrics": list(pages)})
    return run("metrics", "--url", url, "--model", "tiny", "--page", f"{url}/metrics", "--settle", "0")


def test_counters_that_advance_pass(serve: Serve) -> None:
    result = metrics(serve, page_of(3, 30), page_of(4, 46))
    assert result.exit_code == 0, result.output
    assert "llmfleet_router_completion_tokens_total: 16 more" in result.output


@pytest.mark.parametrize(
    ("pages", "problem"),
    [
        ([page_of(3, 30)], "llmfleet_router_requests_total stayed at 3"),
        ([page_of(3, 30), page_of(4, 30)], "llmfleet_router_completion_tokens_total stayed at 30"),
        ([page_of(3, 30), page_of(9, 90, "other")], "llmfleet_router_requests_total stayed at 0"),
        ([(200, "<html>")], "a page is no Prometheus text"),
        ([(500, "boom")], "gave status 500, 200 expected"),
    ],
)
def test_counters_that_stand_still_fail(serve: Serve, pages: list[Answer], problem: str) -> None:
    result = metrics(serve, *pages)
    assert (result.exit_code, problem in result.output) == (1, True), result.output


def test_a_name_without_an_address_fails(serve: Serve) -> None:
    url = serve({})
    result = run("metrics", "--url", url, "--model", "tiny", "--page", "http://nowhere.invalid:9090/metrics")
    assert (result.exit_code, "no pod is ready" in result.output) == (1, True), result.output


@pytest.mark.parametrize("content", ["", "two words", "k\u00e9y", None])
def test_a_file_without_a_key_is_wrong_use_and_its_content_is_not_shown(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    result = run("chat", "--url", "http://router", "--model", "tiny", "--key-file", str(path))
    assert result.exit_code == 2
    assert ("cannot be read" if content is None else "holds no API key") in result.output
    assert not content or content not in result.output


def test_a_fleet_that_still_starts_is_waited_for(serve: Serve) -> None:
    answers = {"/v1/models": [(503, "no backend"), (200, '{"data": []}'), (200, MODELS)]}
    result = run("models", "--url", serve(answers), "--model", "tiny", "--patience", "30")
    assert result.exit_code == 0
    assert "wait  status 503: no backend" in result.output
    assert "wait  'tiny' is not among the models listed: none" in result.output


def test_a_chat_answer_passes(serve: Serve) -> None:
    result = run("chat", "--url", serve({"/v1/chat/completions": [(200, CHAT)]}), "--model", "tiny")
    assert (result.exit_code, "answer: Hello fleet" in result.output) == (0, True)


@pytest.mark.parametrize(
    ("message", "fact"),
    [
        ({"content": None, "reasoning_content": "Okay, the user"}, "reasoning: Okay, the user"),
        ({"content": "", "reasoning": "Okay, the user"}, "reasoning: Okay, the user"),
        ({"content": None}, "answer: no text"),
    ],
)
def test_a_model_that_spends_its_tokens_on_thoughts_has_answered(
    serve: Serve, message: dict[str, Any], fact: str
) -> None:
    answer = {"choices": [{"message": message, "finish_reason": "length"}], "usage": {"completion_tokens": 16}}
    result = run("chat", "--url", serve({"/v1/chat/completions": [(200, json.dumps(answer))]}), "--model", "tiny")
    assert result.exit_code == 0, result.output
    assert fact in result.output


def stream_of(*choices: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps({'choices': [one]})}\n\n" for one in choices) + USAGE + DONE


@pytest.mark.parametrize(
    ("choices", "fact"),
    [
        ([{"delta": {"reasoning_content": one}} for one in ("Okay,", " the user")], "text in 2 chunks: Okay, the user"),
        ([{"delta": {"reasoning": one}} for one in ("Okay,", " the user")], "text in 2 chunks: Okay, the user"),
        (
            [{"delta": {"role": "assistant"}}, {"delta": {}, "finish_reason": "length"}],
            "no text, finish_reason: length",
        ),
    ],
)
def test_a_stream_of_thoughts_passes(serve: Serve, choices: list[dict[str, Any]], fact: str) -> None:
    result = run("stream", "--url", serve({"/v1/chat/completions": [(200, stream_of(*choices))]}), "--model", "tiny")
    assert result.exit_code == 0, result.output
    assert fact in result.output


JOB = {"/v1/chat/completions": [(202, "{}", {"Location": "/v1/requests/job_1"})]}


def test_a_job_that_is_stored_and_answered_passes(serve: Serve) -> None:
    url = serve(JOB | {"/v1/requests/job_1/result?wait=10": [(202, "{}"), (200, CHAT)]})
    result = run("jobs", "--url", url, "--model", "tiny")
    assert result.exit_code == 0, result.output
    assert "stored as job_1" in result.output
    assert "wait  the job is not done yet" in result.output
    assert "answer: Hello fleet" in result.output


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"/v1/chat/completions": [(200, CHAT)]}, "the router has no Redis"),
        ({"/v1/chat/completions": [(202, "{}")]}, "Location is ''"),
        ({"/v1/chat/completions": [(503, "Redis is away")]}, "status 503, 202 expected: Redis is away"),
        (JOB | {"/v1/requests/job_1/result?wait=10": [(410, "gone")]}, "status 410: gone"),
    ],
)
def test_a_job_that_is_not_kept_fails_with_the_reason(
    serve: Serve, answers: Mapping[str, list[Answer]], problem: str
) -> None:
    result = run("jobs", "--url", serve(answers), "--model", "tiny")
    assert result.exit_code == 1
    assert problem in result.output


def test_a_stream_passes_and_its_line_separators_stay_inside_their_event(serve: Serve) -> None:
    result = run("stream", "--url", serve({"/v1/chat/completions": [(200, STREAM)]}), "--model", "tiny")
    assert result.exit_code == 0, result.output
    assert "text in 2 chunks: Hello fl \u00e9et" in result.output
    assert "usage: 2 completion tokens" in result.output


@pytest.mark.parametrize(
    ("check", "path", "answer", "problem"),
    [
        ("models", "/v1/models", (200, '{"data": [{"id": "other"}]}'), "'tiny' is not among the models listed: other"),
        ("models", "/v1/models", (200, '{"data": null}'), "'tiny' is not among the models listed: none"),
        ("models", "/v1/models", (200, "<html>"), "the body is not JSON"),
        ("models", "/v1/models", (200, "[]"), "the body is no JSON object"),
        ("models", "/v1/models", (500, "boom"), "status 500: boom"),
        ("chat", "/v1/chat/completions", (401, "who are you"), "status 401: who are you"),
        ("chat", "/v1/chat/completions", (200, '{"choices": []}'), "the answer has no choices"),
        ("chat", "/v1/chat/completions", (200, '{"choices": [{"message": {"content": ""}}]}'), "has no content"),
        ("chat", "/v1/chat/completions", (200, '{"choices": [{"message": {"content": "a"}}]}'), "no completion tokens"),
        ("chat", "/v1/chat/completions", (200, '{"choices": [null]}'), "the first choice is no object"),
        ("chat", "/v1/chat/completions", (200, '{"choices": [{"message": "x"}]}'), "has no content"),
        (
            "chat",
            "/v1/chat/completions",
            (200, '{"choices": [{"message": {"content": "a"}}], "usage": [16]}'),
            "no completion tokens",
        ),
        ("stream", "/v1/chat/completions", (200, "data: 5\n\n" + DONE), "an event is no JSON object: 5"),
        ("stream", "/v1/chat/completions", (200, "data: null\n\n" + DONE), "an event is no JSON object: null"),
        ("stream", "/v1/chat/completions", (200, 'data: {"choices": [7]}\n\n' + DONE), "no list of objects"),
        ("stream", "/v1/chat/completions", (200, 'data: {"choices": 7}\n\n' + DONE), "no list of objects"),
        ("stream", "/v1/chat/completions", (200, chunk("a") + chunk("b") + USAGE), "without [DONE]: it was cut short"),
        ("stream", "/v1/chat/completions", (200, DONE + chunk("a")), "events followed [DONE]"),
        ("stream", "/v1/chat/completions", (200, chunk("ab") + USAGE + DONE), "only 1 chunks carried text"),
        (
            "stream",
            "/v1/chat/completions",
            (200, 'data: {"choices": [{"delta": {"content": "ab"}, "finish_reason": "stop"}]}\n\n' + USAGE + DONE),
            "only 1 chunks carried text",
        ),
        ("stream", "/v1/chat/completions", (200, chunk("a") + chunk("b") + DONE), "no chunk carried the usage"),
        (
            "stream",
            "/v1/chat/completions",
            (200, chunk(error={"message": "dead"}) + DONE),
            "the stream carried an error",
        ),
        ("stream", "/v1/chat/completions", (200, "data: {\n\n" + DONE), "an event is not JSON"),
        ("stream", "/v1/chat/completions", (503, "no backend"), "status 503: no backend"),
    ],
)
def test_a_broken_path_fails_and_says_why(serve: Serve, check: str, path: str, answer: Answer, problem: str) -> None:
    result = run(check, "--url", serve({path: [answer]}), "--model", "tiny")
    assert result.exit_code == 1
    assert problem in result.output


def test_a_wrong_answer_is_not_tried_again_however_patient_one_is(serve: Serve) -> None:
    answers = {"/v1/chat/completions": [(200, '{"choices": []}'), (200, CHAT)]}
    assert run("chat", "--url", serve(answers), "--model", "tiny", "--patience", "30").exit_code == 1


def test_nobody_listening_is_a_finding_and_not_a_traceback() -> None:
    result = run("chat", "--url", f"http://127.0.0.1:{free_port()}", "--model", "tiny")
    assert (result.exit_code, "FAIL  no answer: Connection refused (after" in result.output) == (1, True), result.output


def test_a_router_that_hangs_is_a_finding_and_not_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = run("stream", "--url", url, "--model", "tiny", "--timeout", "0.2")
    assert (result.exit_code, "FAIL  no answer: timed out" in result.output) == (1, True), result.output


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (
            b'data: {"error": {"message": "the engine was lost"}}\n\n',
            'carried an error: {"message": "the engine was lost',
        ),
        (b'data: {"choices": []}\n\n', "FAIL  the answer broke off"),
    ],
)
def test_a_stream_that_breaks_off_says_what_its_last_event_said(event: bytes, problem: str) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve_once() -> None:
            link, _ = server.accept()
            with link:
                request = link.recv(65536)
                while not request.endswith(b"}"):  # what is unread at the end would reset the connection
                    request += link.recv(65536)
                link.sendall(head + b"%x\r\n%s\r\n" % (len(event), event))

        thread = threading.Thread(target=serve_once, daemon=True)
        thread.start()
        result = run("stream", "--url", f"http://127.0.0.1:{server.getsockname()[1]}", "--model", "tiny")
        thread.join()
    assert (result.exit_code, problem in result.output) == (1, True), result.output


def test_a_closed_admin_port_passes(serve: Serve) -> None:
    result = run("admin-closed", "--url", serve({}), "--admin-port", str(free_port()))
    assert result.exit_code == 0, result.output
    assert "GET /fleet gives 404 on the client port" in result.output


def test_an_open_admin_port_fails(serve: Serve) -> None:
    url = serve({})
    result = run("admin-closed", "--url", url, "--admin-port", url.rpartition(":")[2])
    assert (result.exit_code, "anybody could drain the router" in result.output) == (1, True)


def test_a_closed_admin_port_proves_nothing_when_the_client_port_is_closed_too() -> None:
    result = run("admin-closed", "--url", f"http://127.0.0.1:{free_port()}", "--admin-port", str(free_port()))
    assert (result.exit_code, "proves nothing" in result.output) == (1, True)


def test_an_admin_path_on_the_client_port_fails(serve: Serve) -> None:
    result = run("admin-closed", "--url", serve({"/fleet": [(200, "{}")]}), "--admin-port", str(free_port()))
    assert (result.exit_code, "GET /fleet gave 200 on the client port" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "--url", "router:8080", "--model", "tiny"], "write it as http://HOST:PORT"),
        (["models", "--url", "http://router/v1", "--model", "tiny"], "write it as http://HOST:PORT"),
        (["models", "--url", "http://router"], "Missing option '--model'"),
        (["chat", "--url", "http://router", "--model", "tiny", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["chat", "--url", "http://router", "--model", "tiny", "--patience", "-1"], "Invalid value for '--patience'"),
        (["admin-closed", "--url", "http://router", "--admin-port", "0"], "Invalid value for '--admin-port'"),
        (
            ["metrics", "--url", "http://router", "--model", "tiny", "--page", "router:9090"],
            "write it as http://HOST:PORT/metrics",
        ),
    ],
)
def test_wrong_use_exits_2_and_says_what_to_write(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output
