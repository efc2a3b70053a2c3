"""The autoscaler as a process on a real apiserver, under exactly the rights of its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from crds.crd_objects import monolithic
from fakes.apiserver import Apiserver, free_ports
from fakes.scripted import eventually
from llmfleet.kube.client import Api
from llmfleet.kube.refs import AUTOSCALER, LEASE, LLMCLUSTER, Ref
from unit.operator import test_permissions

MERGE = "application/merge-patch+json"


class Autoscaler:
    """One `llmfleet autoscaler` process."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path) -> None:
        self.metrics, self.health = free_ports(2)
        command = [sys.executable, "-m", "llmfleet", "autoscaler", "--kubeconfig", str(kubeconfig)]
        command += ["--namespace", namespace, "--identity", "sys/rel", "--lease-namespace", namespace]
        command += ["--interval", "1", "--metrics-port", str(self.metrics), "--health-port", str(self.health)]
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stderr=output)

    def page(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10).text

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(180)


def clusters(api: Api, namespace: str) -> list[Any]:
    items, _ = api.list(LLMCLUSTER, namespace=namespace)
    return sorted(items, key=lambda item: item["metadata"]["name"])


def test_a_whole_life_needs_no_right_that_is_not_in_the_table(
    api: Api, server: Apiserver, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(test_permissions.NAMES, "leases", ["llmfleet-autoscaler"])
    monkeypatch.setitem(test_permissions.NAMES, "secrets", ["token"])
    kubeconfig = test_permissions.account(server, namespace, "autoscaler", tmp_path)
    autoscaler = Autoscaler(kubeconfig, namespace, tmp_path / "autoscaler.log")
    ref = Ref(kind=AUTOSCALER, namespace=namespace, name="llama")
    try:
        made = monolithic({"minInstances": 2})
        made["metadata"]["namespace"] = namespace
        api.create(made)
        eventually(lambda: len(clusters(api, namespace)) == 2, seconds=180)
        first = clusters(api, namespace)[0]
        assert first["metadata"]["ownerReferences"][0]["uid"] == api.get(ref)["metadata"]["uid"]
        eventually(lambda: reason(api, ref) in ("AtMinimum", "PendingSuffices"), seconds=180)
        image = {"spec": {"instanceTemplate": {"spec": {"image": "next:1"}}}}
        server.call("PATCH", AUTOSCALER.path(namespace, "llama"), image, content_type=MERGE)
        eventually(lambda: {one["spec"]["image"] for one in clusters(api, namespace)} == {"next:1"}, seconds=180)
        external = {"spec": {"policy": "External"}}
        server.call("PATCH", AUTOSCALER.path(namespace, "llama"), external, content_type=MERGE)
        # As an HPA or KEDA does it.
        scale = {"spec": {"replicas": 4}}
        answer = server.call("PATCH", AUTOSCALER.path(namespace, "llama", "scale"), scale, content_type=MERGE)
        assert answer.status == 200, answer.message
        eventually(lambda: len(clusters(api, namespace)) == 4, seconds=180)
        server.call("PATCH", AUTOSCALER.path(namespace, "llama"), {"spec": {"instances": 3}}, content_type=MERGE)
        eventually(lambda: len(clusters(api, namespace)) == 3, seconds=180)
        eventually(lambda: reason(api, ref) in ("ExternalTarget", "OnTarget"), seconds=180)
        eventually(lambda: scale_status(server, namespace).get("replicas") == 3, seconds=180)
        assert scale_status(server, namespace)["selector"] == "serving.ai/fleet=prod"
        text = autoscaler.page()
        assert api.get(Ref(kind=LEASE, namespace=namespace, name="llmfleet-autoscaler"))["spec"]["holderIdentity"]
    finally:
        code = autoscaler.end()
    assert code == 0
    written = autoscaler.log.read_text()
    assert "forbidden" not in written.lower()
    assert 'code="403"' not in text
    assert f'llmfleet_autoscaler_desired_instances{{fleet="{namespace}/llama",role="both"}} 3.0' in text
    decided = [json.loads(line) for line in written.splitlines()]
    assert "ExternalTarget" in {line.get("reason") for line in decided if line["message"] == "fleet decided"}


def scale_status(server: Apiserver, namespace: str) -> dict[str, Any]:
    """What an HPA reads."""
    return dict(server.call("GET", AUTOSCALER.path(namespace, "llama", "scale")).body["status"])


def reason(api: Api, ref: Ref) -> str:
    return str(((api.get(ref).get("status") or {}).get("decision") or {}).get("reason", ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interval", "0"], "0 is not in the range 1<=x<=300"),
        (["--kubeconfig", "/nowhere"], "pass --kubeconfig FILE"),
        (["--identity", "llmfleet"], "'llmfleet' is not NAMESPACE/RELEASE, such as llmfleet-system/llmfleet"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "llmfleet", "autoscaler", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
