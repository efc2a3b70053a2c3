"""Keep one node's packet filter as the NetworkPolicies say, for as long as the process lives.

In: a Layout and a node. Out: the node's table, replaced in one step whenever a policy, pod or namespace changes, and a
file that says what the table in force was made from. Runs inside the node's network. Without an apiserver it keeps what
it has, and looks again every second; what it cannot apply it says in its log, and tries again.
"""

import json
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

from . import policies
from .apiclient import ApiClient
from .layout import Layout
from .store import write_file

# One change seldom comes alone: a Deployment is many pods.
GATHER_SECONDS = 0.05
RETRY_SECONDS = 1.0
PATHS = {
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
    "policies": "/apis/networking.k8s.io/v1/networkpolicies",
}


class Followed:
    """One kind of object, as the apiserver has it, kept by a thread of its own."""

    def __init__(self, client: ApiClient, path: str, changed: threading.Event) -> None:
        self._client, self._path, self._changed = client, path, changed
        self._objects: dict[str, dict[str, Any]] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._follow, daemon=True).start()

    def now(self) -> list[dict[str, Any]] | None:
        """Return the objects by name; None before the first list came."""
        with self._lock:
            return None if self._objects is None else [self._objects[key] for key in sorted(self._objects)]

    def _follow(self) -> None:
        while True:
            try:
                version = self._list()
                for event in self._client.watch(self._path, version):
                    self._take(event)
            except Exception as error:  # whatever it was, the answer is to list again
                print(f"{self._path}: {error!r}; listing again", flush=True)
            time.sleep(RETRY_SECONDS)

    def _list(self) -> str:
        answer = self._client.list(self._path)
        with self._lock:
            self._objects = {policies.title(item): item for item in answer["items"]}
        self._changed.set()
        return str(answer["metadata"]["resourceVersion"])

    def _take(self, event: dict[str, Any]) -> None:
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            raise ValueError(f"the watch ended: {event}")
        thing = event["object"]
        with self._lock:
            assert self._objects is not None
            self._objects.pop(policies.title(thing), None)
            if event["type"] != "DELETED":
                self._objects[policies.title(thing)] = thing
        self._changed.set()


def run(layout: Layout, node: str) -> None:
    """Apply every change until the process is ended."""
    client, changed = ApiClient(layout, user="policies"), threading.Event()
    followed = {name: Followed(client, path, changed) for name, path in PATHS.items()}
    applied = ""
    while True:
        changed.wait()
        time.sleep(GATHER_SECONDS)
        changed.clear()
        found = {name: one.now() for name, one in followed.items()}
        if any(objects is None for objects in found.values()):
            continue
        world = policies.World(**{name: objects or [] for name, objects in found.items()})
        text = policies.script(node, world)
        if text == applied or apply(text):
            applied = text
            write_file(layout.policies_in_force(node), json.dumps(in_force(world)))
        else:
            time.sleep(RETRY_SECONDS)
            changed.set()


def apply(text: str) -> bool:
    """Replace the table; say so when the packet filter does not take it."""
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{done.stderr}\n{text}", flush=True)
    return done.returncode == 0


def in_force(world: policies.World) -> dict[str, dict[str, str]]:
    """Say what a table was made from: versions of policies and namespaces, addresses of pods."""
    versions = [
        {policies.title(one): str(one["metadata"]["resourceVersion"]) for one in objects}
        for objects in (world.policies, world.namespaces)
    ]
    addresses = {policies.title(pod): str(pod["status"]["podIP"]) for pod in world.pods if policies.counts(pod)}
    return {"policies": versions[0], "namespaces": versions[1], "pods": addresses}


def main(layout: Layout, node: str) -> int:
    """Run, with the reason in the log when that ends."""
    try:
        run(layout, node)
    except Exception:
        traceback.print_exc(file=sys.stdout)
    return 1
