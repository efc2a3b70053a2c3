"""The operator as a process: lease, probes, metrics, signals, wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from fakes.apiserver import Apiserver, free_ports
from fakes.scripted import ScriptedApiserver, Status, eventually
from llmfleet.kube.client import Api
from llmfleet.kube.election.client import Election
from llmfleet.kube.election.decide import Timing
from llmfleet.kube.refs import LEASE, LLMCLUSTER, STATEFULSET, Ref
from llmfleet.kube.transport.client import Anonymous, Transport

QUICK = Timing(duration=2, renew_deadline=1.2, retry=0.3)


class Operator:
    """One `llmfleet operator` process."""

    def __init__(self, server: Apiserver, namespace: str, name: str, log: Path, *arguments: str) -> None:
        self.metrics_port, self.health_port = free_ports(2)
        command = [sys.executable, "-m", "llmfleet", "operator", "--kubeconfig", str(server.kubeconfig)]
        command += ["--namespace", namespace, "--identity", "sys/rel", "--lease-namespace", namespace]
        command += ["--metrics-port", str(self.metrics_port), "--health-port", str(self.health_port), *arguments]
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stderr=output, env={**os.environ, "POD_NAME": name})

    def get(self, port: int, path: str) -> tuple[int, str]:
        try:
            answer = requests.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        except requests.RequestException:
            return 0, ""
        return answer.status_code, answer.text

    def ready(self) -> str:
        status, text = self.get(self.health_port, "/readyz")
        return text.strip() if status == 200 else ""

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(180)


@contextmanager
def running(*arguments: Any) -> Iterator[Operator]:
    operator = Operator(*arguments)
    try:
        yield operator
    finally:
        if operator.process.poll() is None:
            operator.process.kill()
            operator.process.wait()


def holder(api: Api, namespace: str) -> str:
    lease = api.get(Ref(kind=LEASE, namespace=namespace, name="llmfleet-operator"))
    return str(lease["spec"].get("holderIdentity") or "")


def cluster(namespace: str) -> dict[str, Any]:
    spec = {"model": "m", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "i:1"}
    metadata = {"name": "a", "namespace": namespace}
    return {"apiVersion": "serving.ai/v1alpha1", "kind": "LLMCluster", "metadata": metadata, "spec": spec}


def test_two_operators_one_lease_and_a_clean_handover(
    api: Api, server: Apiserver, namespace: str, tmp_path: Path
) -> None:
    with running(server, namespace, "first", tmp_path / "first") as first:
        eventually(lambda: first.ready() == "leading", seconds=180)
        assert holder(api, namespace) == "first"
        with running(server, namespace, "second", tmp_path / "second") as second:
            eventually(lambda: second.ready() == "standing by", seconds=180)
            api.create(cluster(namespace))
            ref = Ref(kind=STATEFULSET, namespace=namespace, name="a")
            eventually(lambda: server.call("GET", ref.path).status == 200, seconds=180)
            # The write is counted when its answer was read, which is after others can see it.
            written = 'llmfleet_operator_writes_total{code="200",resource="statefulsets.apps",verb="apply"}'
            eventually(lambda: written in first.get(first.metrics_port, "/metrics")[1])
            status, text = first.get(first.metrics_port, "/metrics")
            assert (status, "llmfleet_operator_leader 1.0" in text) == (200, True)
            assert first.get(first.health_port, "/healthz") == (200, "ok\n")
            assert first.get(first.health_port, "/nonsense")[0] == 404
            assert first.end() == 0
            # The lease was released, so the second need not wait for it to expire.
            eventually(lambda: holder(api, namespace) == "second", seconds=180)
            eventually(lambda: second.ready() == "leading", seconds=180)
            assert second.end(signal.SIGINT) == 0
    assert all(line["level"] in ("info", "warning") for line in first.lines())
    assert first.lines()[-1]["message"] == "operator ends"
    assert holder(api, namespace) == ""


def test_an_operator_that_loses_its_lease_leaves(api: Api, server: Apiserver, namespace: str, tmp_path: Path) -> None:
    """Somebody takes the lease away: nothing is written any more and the process ends with an error."""
    with running(server, namespace, "first", tmp_path / "log") as operator:
        eventually(lambda: operator.ready() == "leading", seconds=180)
        ref = Ref(kind=LEASE, namespace=namespace, name="llmfleet-operator")
        taken = {"spec": {"holderIdentity": "somebody", "renewTime": "2026-11-21T12:00:00.000000Z"}}
        api.merge_patch(ref, taken)
        assert operator.process.wait(180) == 1
    assert any(line["message"] == "the lease was lost" for line in operator.lines())


WRONG: dict[str, tuple[list[str], str]] = {
    "an identity without a slash": (["--identity", "x"], "is not NAMESPACE/RELEASE"),
    "a port that is none": (["--metrics-port", "99999"], "0<=x<=65535"),
    "a kubeconfig that is not there": (["--kubeconfig", "/nonexistent"], "pass --kubeconfig FILE"),
    "an unknown flag": (["--leader"], "No such option"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_message_and_exit_code_2(case: str) -> None:
    arguments, message = WRONG[case]
    command = [sys.executable, "-m", "llmfleet", "operator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# The election itself, in quick motion.


def elections(api: Api, namespace: str, *names: str, timing: Timing = QUICK) -> list[Election]:
    ref = Ref(kind=LEASE, namespace=namespace, name="quick")
    return [Election(api, ref, name, timing=timing) for name in names]


class Standing:
    """An election on a thread."""

    def __init__(self, election: Election) -> None:
        self.election = election
        self.stop, self.won, self.lost = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=election.run, args=(self.stop, self.won.set, self.lost.set), daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_there_is_never_more_than_one_leader(api: Api, namespace: str) -> None:
    # Long enough that a busy machine never makes the leader lose its lease meanwhile.
    timing = Timing(duration=60, renew_deadline=45, retry=0.3)
    standing = [Standing(election) for election in elections(api, namespace, "a", "b", "c", timing=timing)]
    eventually(lambda: sum(s.won.is_set() for s in standing) == 1)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert sum(s.election.is_leader() for s in standing) <= 1
        time.sleep(0.01)
    assert sum(s.won.is_set() for s in standing) == 1
    for one in standing:
        one.end()


def test_a_silent_leader_is_replaced_only_after_it_stopped_believing(api: Api, namespace: str) -> None:
    first, second = elections(api, namespace, "a", "b")
    leading = Standing(first)
    eventually(leading.won.is_set)
    waiting = Standing(second)
    time.sleep(0.5)
    leading.stop.set()
    leading.thread.join(60)
    # It neither renews nor releases, as after a power loss.
    while not waiting.won.is_set():
        assert not (first.is_leader() and second.is_leader())
        time.sleep(0.01)
    assert not first.is_leader()
    waiting.end()


def test_a_leader_that_cannot_reach_the_apiserver_stops_in_time_and_says_so(fake: ScriptedApiserver) -> None:
    lease: dict[str, Any] = {}

    def serve(request: Any) -> Status | None:
        if request.method == "GET":
            return Status(code=200, body=lease) if lease else Status(code=404)
        lease.update(json.loads(request.body))
        return Status(code=200, body=lease)

    fake.rules.append(serve)
    api = Api(Transport(Anonymous(fake.url), user_agent="t"), manager="t", read_seconds=0.2)
    (election,) = elections(api, "ns", "a")
    standing = Standing(election)
    eventually(standing.won.is_set)
    fake.stop()
    eventually(lambda: not election.is_leader())
    eventually(standing.lost.is_set)
    standing.end()


def test_a_released_lease_is_taken_at_once(api: Api, namespace: str) -> None:
    """The lease would last for ten minutes: whoever wins it now did not wait for its end."""
    lasting = Timing(duration=600, renew_deadline=500, retry=0.3)
    first, second = elections(api, namespace, "a", "b", timing=lasting)
    leading = Standing(first)
    eventually(leading.won.is_set)
    leading.end()
    first.release()
    assert not first.is_leader()
    following = Standing(second)
    eventually(following.won.is_set, seconds=180)
    following.end()


def test_a_released_lease_that_is_no_longer_ours_is_left_alone(api: Api, namespace: str) -> None:
    first, _ = elections(api, namespace, "a", "b")
    leading = Standing(first)
    eventually(leading.won.is_set)
    leading.end()
    ref = Ref(kind=LEASE, namespace=namespace, name="quick")
    api.merge_patch(ref, {"spec": {"holderIdentity": "b"}})
    first.release()
    assert api.get(ref)["spec"]["holderIdentity"] == "b"


def test_the_resource_the_operator_needs_is_named_when_its_crd_is_missing(fake: ScriptedApiserver) -> None:
    from llmfleet.kube.errors import NotFound
    from llmfleet.kube.watch.client import advice

    assert "CustomResourceDefinition" in advice(NotFound("x"), LLMCLUSTER)
