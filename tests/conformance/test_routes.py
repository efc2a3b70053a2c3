"""What an engine would do for anybody, nobody gets it to do through the router.

The list is the running engine's own: vLLM with its development routes, which can put it to sleep, change its weights
and call any method of its workers. The simulator has no list; it is asked for the routes of the recorded one.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.engine import REAL, launch, patience
from conformance.front import router
from conformance.record import DEVELOPMENT, RECORDED, routes
from sim.engine import Process

SERVED = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/models"),
}
ON_RECORD = [(method, path) for method, path in json.loads((RECORDED / "routes.json").read_text())]
BODY = {"model": "tiny", "prompt": "a", "input": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    """An engine that does all it can do, and a router."""
    folder: Path = tmp_path_factory.mktemp("routes")
    with launch(kind, folder, env=DEVELOPMENT) as engine:
        engine.until_up(patience(kind))
        with router(folder, both=engine) as front:
            yield engine, front


def test_the_recorded_routes_are_the_engines(pair, kind):
    engine, _ = pair
    assert kind != REAL or routes(engine) == ON_RECORD
    assert {route for route in SERVED if route not in ON_RECORD} == set()


@pytest.mark.parametrize(("method", "path"), ON_RECORD, ids=lambda part: part)
def test_a_route_is_served_only_if_it_is_on_the_list(pair, method, path):
    front = pair[1]
    plain = path.replace("{response_id}", "resp_1")
    status = front.request(method, plain, BODY if method == "POST" else None).status
    # Whether the engine likes the body is not the question: it was asked, or it was not.
    assert status in (200, 400) if (method, path) in SERVED else status in (404, 405)
    for hidden in disguises(plain):
        status = front.request(method, hidden, BODY if method == "POST" else None).status
        assert status in (400, 404, 405), hidden


def disguises(path: str) -> tuple[str, ...]:
    """Other ways to write a path that a lenient server would take for it."""
    encoded = "/" + "".join(f"%{ord(letter):02x}" for letter in path[1:])
    return (encoded, f"/{path}", f"{path}/", f"/v1/models/..{path}", f"/./{path[1:]}", f"{path};a", path.upper())
