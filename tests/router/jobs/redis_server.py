"""A redis-server process of a test's own, from this machine or from the packages of the project's Redis image.

In: a folder. Out: a server on loopback, set up as the chart sets it up, that can be killed, frozen and started again on
its data. Nothing is installed: without a redis-server 7 on the path, the image's files are laid out once in the cache
and run with their own loader.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis

from fakes.ports import free_port

ROOT = Path(__file__).resolve().parents[3]


def command() -> list[str]:
    """The words that start redis-server 7 or newer."""
    found = shutil.which("redis-server")
    if found and major(found) >= 7:
        return [found]
    return from_packages()


def major(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=(\d+)", said)
    return int(match[1]) if match else 0


def from_packages() -> list[str]:
    cache = Path(os.environ.get("LLMFLEET_CACHE") or cache_home() / "llmfleet")
    lock = (ROOT / "images/redis/packages").read_bytes()
    tree = cache / "redis" / hashlib.sha256(lock).hexdigest()[:12]
    tree.parent.mkdir(parents=True, exist_ok=True)
    with open(tree.parent / "lock", "w") as handle:  # several test processes may want it at once
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not tree.is_dir():
            scratch = tree.with_suffix(".new")
            shutil.rmtree(scratch, ignore_errors=True)
            subprocess.run(
                [ROOT / "ci/images/build", "--tree", scratch, "redis"], check=True, stdout=subprocess.DEVNULL
            )
            scratch.rename(tree)
    loader = next((tree / "usr/lib64").glob("ld-linux*"), None) or next((tree / "usr/lib").glob("ld-linux*"))
    libraries = next((tree / "usr/lib").glob("*-linux-gnu*"))
    return [str(loader), "--library-path", str(libraries), str(tree / "usr/bin/redis-server")]


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


class RedisServer:
    def __init__(self, words: list[str], folder: Path, *extra: str) -> None:
        self._words, self.folder, self._extra = words, folder, extra
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *extra: str) -> redis.Redis:
        """Start, or start again on the data of before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The chart's settings but one: behind a sync that takes long, everysec answers before it writes, and a kill
        # then loses what was acknowledged (docs/jobs.md). How quick the disk is, is not what a test is about.
        chart = "--appendonly yes --appendfsync no --save '' --maxmemory 256mb --maxmemory-policy noeviction"
        words = [word.strip("'") for word in chart.split(" ")]
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--logfile", "log"]
        self._process = subprocess.Popen([*self._words, *own, *words, *self._extra, *extra])
        client = self.client()
        for _ in range(3000):
            try:
                client.ping()
                return client
            except redis.AuthenticationError:
                return client
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                if self._process.poll() is not None:
                    raise AssertionError(f"redis-server ended: {(self.folder / 'log').read_text()[-500:]}") from None
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True, **options)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
