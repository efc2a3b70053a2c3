"""route-sync: the file is always a whole valid document, and the last good one stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.scripted import Hang, Reset, ScriptedApiserver, Status, eventually, scripted_apiserver
from llmfleet.api.document import Document, Endpoint, Model, parse_document, render
from llmfleet.kube.backoff import Backoff
from llmfleet.kube.transport.client import Anonymous, PodCredentials
from llmfleet.route.sync.client import write_atomically
from llmfleet.route.sync.file import next_step
from llmfleet.route.sync.main import Sync, build_sync
from llmfleet.settings import InCluster


def content(generation: int, host: int = 1) -> str:
    endpoint = Endpoint(instance="a", address=f"10.0.0.{host}:8000", pod_uid="u")
    return render(Document(generation=generation, models={"m": Model(endpoints=(endpoint,))})).decode()


def put(fake: ScriptedApiserver, text: str | None, **options: Any) -> None:
    data = {} if text is None else {"data": {"backends.json": text}}
    fake.put("backends", **data, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfleet.kube.watch.client.WATCH", Backoff(base=0.02, cap=0.1))
    monkeypatch.setattr("llmfleet.route.sync.main.RETRY_SECONDS", 0.05)


@contextmanager
def syncing(fake: ScriptedApiserver, output: Path, credentials: Any = None) -> Iterator[Sync]:
    sync = build_sync(credentials or Anonymous(fake.url), "ns", "backends", output)
    thread = threading.Thread(target=sync.run, daemon=True)
    thread.start()
    try:
        yield sync
    finally:
        sync.end()
        fake.end_watches()
        thread.join(60)
        assert not thread.is_alive()


def generation(path: Path) -> int:
    return parse_document(path.read_bytes()).generation if path.exists() else 0


def test_the_file_follows_the_configmap(fake: ScriptedApiserver, tmp_path: Path) -> None:
    put(fake, content(1))
    output = tmp_path / "backends.json"
    with syncing(fake, output):
        eventually(lambda: generation(output) == 1)
        eventually(lambda: fake.open_watches == 1)
        put(fake, content(2, host=2))
        eventually(lambda: generation(output) == 2)
    assert os.listdir(tmp_path) == ["backends.json"]


def test_it_asks_for_its_one_configmap_only(fake: ScriptedApiserver, tmp_path: Path) -> None:
    """A Role with resourceNames allows list and watch only with this selector."""
    put(fake, content(1))
    with syncing(fake, tmp_path / "f"):
        eventually(lambda: fake.open_watches == 1)
    assert {request.query.get("fieldSelector") for request in fake.requests} == {"metadata.name=backends"}
    assert {(request.method, request.path) for request in fake.requests} == {
        ("GET", "/api/v1/namespaces/ns/configmaps")
    }


BAD = [
    None,
    "",
    "{",
    "[]",
    '{"version":99,"generation":9,"models":{}}',
    '{"version":1,"generation":9,"models":{"m":[]}}',
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_document_changes_nothing(fake: ScriptedApiserver, tmp_path: Path, text: str | None) -> None:
    output = tmp_path / "backends.json"
    put(fake, content(1))
    with syncing(fake, output) as sync:
        eventually(lambda: generation(output) == 1)
        eventually(lambda: fake.open_watches == 1)
        good = output.read_bytes()
        put(fake, text)
        eventually(lambda: sync.reason not in ("changed", "current"))
        assert output.read_bytes() == good
        put(fake, content(3))
        eventually(lambda: generation(output) == 3)


def test_a_deleted_configmap_changes_nothing(fake: ScriptedApiserver, tmp_path: Path) -> None:
    output = tmp_path / "backends.json"
    put(fake, content(1))
    with syncing(fake, output) as sync:
        eventually(lambda: generation(output) == 1)
        eventually(lambda: fake.open_watches == 1)
        fake.drop("backends")
        eventually(lambda: "not there" in sync.reason)
        assert generation(output) == 1


def test_a_valid_document_without_endpoints_is_adopted(fake: ScriptedApiserver, tmp_path: Path) -> None:
    output = tmp_path / "backends.json"
    put(fake, content(1))
    with syncing(fake, output):
        eventually(lambda: generation(output) == 1)
        eventually(lambda: fake.open_watches == 1)
        put(fake, render(Document(generation=2, models={})).decode())
        eventually(lambda: generation(output) == 2)


@pytest.mark.parametrize("fault", [Reset(), Status(code=500), Status(code=403), Status(code=404), Hang()])
def test_without_an_apiserver_the_last_file_stays_and_the_process_is_well(tmp_path: Path, fault: Any) -> None:
    output = tmp_path / "backends.json"
    output.write_text(content(5))
    with scripted_apiserver() as fake:
        heal = fake.always(fault)
        with syncing(fake, output) as sync:
            eventually(lambda: fake.requests)
            time.sleep(0.2)
            assert generation(output) == 5
            assert sync.healthy()[0]
            heal()
            if isinstance(fault, Hang):
                fake.stop()
            else:
                put(fake, content(6))
                eventually(lambda: generation(output) == 6)


def test_a_file_that_cannot_be_written_is_tried_again(fake: ScriptedApiserver, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    put(fake, content(1))
    with syncing(fake, folder / "backends.json") as sync:
        eventually(lambda: sync.cache.get("ns", "backends") is not None)
        time.sleep(0.1)
        folder.mkdir()
        eventually(lambda: generation(folder / "backends.json") == 1)


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "backends.json"
    stop = threading.Event()
    broken: list[bytes] = []
    texts = [content(1), content(2, host=2) + " " * 200_000]
    write_atomically(path, texts[0].encode())

    def read() -> None:
        while not stop.is_set():
            data = path.read_bytes()
            if data.decode() not in texts:
                broken.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(100):
        write_atomically(path, texts[n % 2].encode())
    stop.set()
    reader.join()
    assert broken == []


def test_a_half_written_temporary_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".backends.json.new").write_text("half")
    write_atomically(tmp_path / "backends.json", b"whole")
    assert os.listdir(tmp_path) == ["backends.json"]


def test_a_rotated_token_is_used(fake: ScriptedApiserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfleet.kube.transport.client.TOKEN_SECONDS", 0.05)
    token = tmp_path / "token"
    token.write_text("one\n")
    credentials = PodCredentials(InCluster(url=fake.url, token=token, ca=tmp_path / "ca.crt"))
    monkeypatch.setattr(credentials, "endpoint", Anonymous(fake.url).endpoint)
    put(fake, content(1))
    with syncing(fake, tmp_path / "f", credentials):
        eventually(lambda: fake.open_watches == 1)
        token.write_text("two")
        time.sleep(0.1)
        fake.end_watches()
        eventually(lambda: len(fake.asked(watch=True)) >= 2)
        token.unlink()
        time.sleep(0.1)
        fake.end_watches()
        eventually(lambda: len(fake.asked(watch=True)) >= 3)
    sent = [request.headers["authorization"] for request in fake.requests]
    assert sent[0] == "Bearer one"
    assert sent[-1] == "Bearer two"


def test_the_same_bytes_are_not_written_again() -> None:
    configmap = {"data": {"backends.json": content(1)}}
    assert next_step(configmap, content(1).encode()).data is None
    assert next_step(configmap, content(2).encode()).data == content(1).encode()


def test_the_command_says_what_to_write_when_the_folder_is_missing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "llmfleet",
        "route-sync",
        "--configmap",
        "b",
        "--output",
        str(tmp_path / "no" / "f"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "mount the volume there first" in done.stderr
