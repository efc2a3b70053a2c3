"""A primary, two replicas and three Sentinels, each a process of a test's own.

In: the words that start redis-server, and a folder. Out: `Sentinels`, whose primary can be killed, frozen or replaced
while somebody uses it. Every wait is for something seen, and bounded generously.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from redis_server import RedisServer

from fakes.ports import free_port

NAME = "jobs"
CONFIG = """\
port {port}
bind 127.0.0.1
dir {folder}
logfile log
sentinel monitor {name} 127.0.0.1 {primary} 2
sentinel down-after-milliseconds {name} 3000
sentinel failover-timeout {name} 20000
"""


class Sentinels:
    def __init__(self, words: list[str], folder: Path) -> None:
        self._words, self._folder = words, folder
        self.servers = [RedisServer(words, folder / f"server-{i}", "--repl-diskless-sync-delay", "0") for i in range(3)]
        self.ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def settings(self) -> dict[str, Any]:
        return {"masterName": NAME, "addresses": [f"127.0.0.1:{port}" for port in self.ports]}

    def start(self) -> None:
        primary, *replicas = self.servers
        primary.start()
        for replica in replicas:
            replica.start("--replicaof", f"127.0.0.1 {primary.port}")
        for replica in replicas:
            until(lambda one=replica: follows(one, primary), "a replica follows")
        for number, port in enumerate(self.ports):
            folder = self._folder / f"sentinel-{number}"
            folder.mkdir(parents=True)
            text = CONFIG.format(port=port, folder=folder, name=NAME, primary=primary.port)
            (folder / "sentinel.conf").write_text(text)
            self._processes.append(subprocess.Popen([*self._words, str(folder / "sentinel.conf"), "--sentinel"]))
        until(lambda: all(self._knows_all(port) for port in self.ports), "every Sentinel knows all others")

    def _knows_all(self, port: int) -> bool:
        state = ask(port).sentinel_master(NAME)
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 2 and not state["is_sdown"]

    def primary(self) -> RedisServer:
        """The one that every Sentinel names and that says so itself."""
        found: list[RedisServer] = []

        def agreed() -> bool:
            named = {ask(port).sentinel_master(NAME)["port"] for port in self.ports}
            found[:] = [server for server in self.servers if named == {server.port}]
            return bool(found) and found[0].client().role()[0] == "master"

        until(agreed, "the Sentinels agree")
        return found[0]

    def all_follow(self) -> None:
        """Wait until every other server follows the primary."""
        primary = self.primary()
        others = [server for server in self.servers if server is not primary]
        until(lambda: all(follows(one, primary) for one in others), "every other server follows the primary")

    def fail_over(self) -> None:
        """A planned failover, asked for until it can begin."""

        def begun() -> bool:
            try:
                return bool(ask(self.ports[0]).sentinel_failover(NAME))
            except redis.ResponseError:
                return False

        until(begun, "a planned failover begins")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for server in self.servers:
            server.stop()


def ask(port: int) -> Any:
    return redis.Redis(port=port, decode_responses=True)


def follows(replica: RedisServer, primary: RedisServer) -> bool:
    found = replica.client().info("replication")
    return found.get("master_link_status") == "up" and found["master_port"] == primary.port


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(6000):
        try:
            if condition():
                return
        except (redis.ConnectionError, redis.ResponseError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"not within 120 s: {what}")
