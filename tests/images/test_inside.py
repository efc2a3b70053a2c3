"""What is in the images, seen from inside: the image's user, a read-only root, nothing of this machine."""

import subprocess
import time
import urllib.request
from contextlib import suppress

import pytest
from image_driver import Container
from imagebuild import elf
from imagebuild.tree import Kind

from fakes.ports import free_port

pytestmark = pytest.mark.images
PYTHON_IMAGES = ("llmfleet", "sim", "vllm-cpu")
EVERY = (*PYTHON_IMAGES, "redis")
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""

STAND_IN_MAIN = """
import multiprocessing

def work():
    print("worker", __name__)

def main():
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    return process.exitcode
"""
STAND_IN = """
set -e
cd /opt/vllm && mkdir -p venv/lib/python3.11/site-packages && cd venv/lib/python3.11/site-packages
mkdir -p vllm/entrypoints/cli
touch vllm/__init__.py vllm/entrypoints/__init__.py vllm/entrypoints/cli/__init__.py
echo "$1" > vllm/entrypoints/cli/main.py
vllm serve
"""


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("llmfleet", "uid=65532(llmfleet) gid=65532(llmfleet)"),
        ("sim", "uid=2000(vllm) gid=0(root)"),
        ("vllm-cpu", "uid=2000(vllm) gid=0(root)"),
        ("redis", "uid=999(redis) gid=999(redis)"),
    ],
)
def test_the_user_of_an_image_exists_in_it(containers: dict[str, Container], name: str, identity: str) -> None:
    assert containers[name].shell("id").startswith(identity)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("llmfleet", "llmfleet --help"),
        ("llmfleet", "llmfleet --version"),
        ("llmfleet", "llmfleet operator --help"),
        ("llmfleet", "llmfleet router --help"),
        ("llmfleet", "llmfleet route-sync --help"),
        ("llmfleet", "llmfleet backends --help"),
        ("llmfleet", "llmfleet uninstall --help"),
        ("llmfleet", "llmfleet helm-test --help"),
        ("sim", "llmfleet-sim --help"),
        ("sim", "vllm --help"),
        ("sim", "vllm serve --help"),
        ("redis", "redis-server --version"),
        ("redis", "redis-cli --version"),
        ("vllm-cpu", "lscpu"),
    ],
)
def test_a_command_of_an_image_answers(containers: dict[str, Container], name: str, command: str) -> None:
    assert containers[name].shell(command).strip()


@pytest.mark.parametrize(("name", "package"), [("llmfleet", "llmfleet"), ("sim", "llmfleet_sim")])
def test_every_module_imports_so_nothing_it_needs_was_left_out(
    containers: dict[str, Container], name: str, package: str
) -> None:
    done = containers[name].run("python3", "-P", "-c", IMPORT_ALL, package)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


def test_the_runtime_dependencies_import_on_the_python_of_the_image(containers: dict[str, Container]) -> None:
    """Debian's 3.11.2 needs async_timeout where a later 3.11 does not; a lock made elsewhere forgets it."""
    modules = "ssl, aiohttp, click, httptools, kubernetes, kubernetes.informer, kubernetes.leaderelection, orjson"
    modules += ", prometheus_client, redis.asyncio, requests, rich, uvloop, xxhash, yaml, zoneinfo, ctypes, sqlite3"
    text = f"python3 -c \"import {modules}; print(ssl.create_default_context().cert_store_stats()['x509_ca'])\""
    assert int(containers["llmfleet"].shell(text)) > 100


@pytest.mark.parametrize("name", EVERY)
def test_every_library_a_program_asks_for_is_in_the_image(containers: dict[str, Container], name: str) -> None:
    image = containers[name].tree
    present = {path.rsplit("/", 1)[-1] for path in image}
    programs = {path: elf.needed(entry.data) for path, entry in image.items() if entry.kind is Kind.FILE}
    assert any(programs.values())
    assert {path: sorted(wanted - present) for path, wanted in programs.items() if wanted - present} == {}


@pytest.mark.parametrize("name", EVERY)
def test_every_link_in_an_image_leads_somewhere(containers: dict[str, Container], name: str) -> None:
    """Except into the environment that is mounted."""
    links = [path for path, entry in containers[name].tree.items() if entry.kind is Kind.LINK]
    done = containers[name].run("sh", "-c", 'for link; do test -e "/$link" || echo "$link"; done', "sh", *links)
    assert set(done.stdout.splitlines()) <= {"models/tiny"}, done.stderr


@pytest.mark.parametrize("name", PYTHON_IMAGES)
def test_start_up_reads_byte_code_and_writes_none(containers: dict[str, Container], name: str) -> None:
    image = containers[name].tree
    sources = {path for path in image if path.endswith(".py") and "/dist-packages/" in path}
    sources |= {path for path in image if path.endswith(".py") and path.startswith("usr/lib/python3.11/")}
    compiled = {path for path in image if path.endswith(".cpython-311.pyc")}
    expected = {f"{p.rpartition('/')[0]}/__pycache__/{p.rpartition('/')[2][:-3]}.cpython-311.pyc" for p in sources}
    assert expected == compiled
    unchecked = [path for path in compiled if image[path].data[4:8] != b"\x01\x00\x00\x00"]
    assert unchecked == [], "byte code that is compared with its source on every start"


def test_what_lies_in_the_working_folder_is_not_imported(containers: dict[str, Container]) -> None:
    text = 'cd /tmp && echo "raise SystemExit(9)" > click.py && cp click.py sitecustomize.py && llmfleet --version'
    assert "0.1.0" in containers["llmfleet"].shell(text, HOME="/tmp")


def test_the_simulator_serves_as_the_images_user_on_a_read_only_root(containers: dict[str, Container]) -> None:
    port = free_port()
    process = containers["sim"].start("vllm", "serve", "tiny", "--host", "127.0.0.1", "--port", str(port))
    try:
        assert answer(f"http://127.0.0.1:{port}/health", process) == 200
    finally:
        containers["sim"].end(process)


def answer(url: str, process: subprocess.Popen[str]) -> int:
    """Wait for a server's first answer; one that ends instead shows its output."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    raise AssertionError(f"{url}: no answer")


def test_redis_serves_from_the_data_volume_on_a_read_only_root(containers: dict[str, Container]) -> None:
    redis, port = containers["redis"], free_port()
    entry = redis.image.config["config"]["Entrypoint"]
    arguments = ["--port", str(port), "--dir", "/data", "--appendonly", "yes", "--save", ""]
    process = redis.start(*entry, *arguments, writable="data")
    try:
        ask = f"for i in $(seq 1000); do redis-cli -p {port} ping 2>/dev/null | grep -q PONG && break; sleep 0.1; done"
        script = f"redis-cli -p {port} eval \"return redis.call('incr', KEYS[1])\" 1 counter"
        assert redis.shell(f"{ask}; {script}").strip() == "1"
        assert redis.shell(f"redis-cli -p {port} config get protected-mode").split() == ["protected-mode", "no"]
    finally:
        redis.end(process)


def test_the_vllm_image_says_what_to_mount_when_nothing_is(containers: dict[str, Container]) -> None:
    done = containers["vllm-cpu"].run("vllm", "serve", "/models/tiny")
    assert done.returncode != 0
    assert "ci/vllm-cpu" in done.stderr and "/opt/vllm" in done.stderr


def test_the_vllm_image_finds_a_mounted_environment_in_workers_too(containers: dict[str, Container]) -> None:
    """A stand-in environment: its `vllm` starts a worker by spawn, as vLLM does."""
    done = containers["vllm-cpu"].run("sh", "-c", STAND_IN, "sh", STAND_IN_MAIN, writable="opt/vllm")
    assert (done.returncode, done.stdout) == (0, "worker vllm.entrypoints.cli.main\n"), done.stderr
