"""A real kube-apiserver and etcd on loopback, without kubelet, scheduler or controllers.

In: an empty directory. Out: an `Apiserver` with address, credentials, a kubeconfig and a plain JSON client.
Objects are stored, defaulted, validated and watched as in any cluster, but nothing acts on them. Binaries come
from ci/tools. Both processes are ended by their process ids, also when the test run itself is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import requests
import yaml

from fakes.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 400.0
STOP_SECONDS = 10.0
ATTEMPTS = 3
PR_SET_PDEATHSIG = 1


class StartError(RuntimeError):
    """A process ended before the apiserver was ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the apiserver said: an HTTP status and a JSON object."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The error text a user of kubectl would read."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Apiserver:
    """Where it listens and how to log in as an administrator."""

    url: str
    token: str
    ca_file: Path
    kubeconfig: Path
    session: requests.Session

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; an error status is an answer, not an exception."""
        answer = self.session.request(
            method,
            self.url + path,
            data=None if body is None else json.dumps(body),
            params={"fieldValidation": "Strict", **(params or {})} if body is not None else params,
            headers={"Content-Type": content_type},
            timeout=180,
        )
        return Answer(status=answer.status_code, body=answer.json())

    def apply(self, path: str, body: Mapping[str, Any], *, manager: str = "test") -> Answer:
        """Apply one object server-side; `path` is the object's own."""
        params = {"fieldManager": manager, "force": "true"}
        return self.call("PATCH", path, body, content_type="application/apply-patch+yaml", params=params)


def tool(name: str) -> Path:
    """Path of a pinned binary, built first when this machine has not built it yet."""
    found = subprocess.run([ROOT / "ci/tools/tool", name], check=True, stdout=subprocess.PIPE, text=True)
    return Path(found.stdout.strip())


def install_crds(server: Apiserver, directory: Path, *, timeout: float = 180.0) -> None:
    """Create every CRD file of a directory and wait until their kinds are served."""
    for file in sorted(directory.glob("*.yaml")):
        crd = yaml.safe_load(file.read_text(encoding="utf-8"))
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        answer = server.apply(path, crd, manager="crds")
        if answer.status not in (200, 201):
            raise RuntimeError(f"{file.name}: {answer.message}")
        version = next(v["name"] for v in crd["spec"]["versions"] if v["served"])
        await_served(server, f"/apis/{crd['spec']['group']}/{version}/{crd['spec']['names']['plural']}", timeout)


def await_served(server: Apiserver, path: str, timeout: float) -> None:
    """Wait until a list of the kind is answered."""
    deadline = time.monotonic() + timeout
    while server.session.get(server.url + path, timeout=60).status_code != 200:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} is not served after {timeout:.0f} s")
        time.sleep(0.05)


@contextlib.contextmanager
def running_apiserver(directory: Path, *, arguments: Sequence[str] = ()) -> Iterator[Apiserver]:
    """Run both processes for the length of the block; `arguments` go to kube-apiserver."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        yield start_both(stack, directory, arguments)


def start_both(stack: contextlib.ExitStack, directory: Path, arguments: Sequence[str]) -> Apiserver:
    """Start until it holds: a port that was free when it was chosen can be taken when it is used."""
    for attempt in range(1, ATTEMPTS + 1):
        with contextlib.ExitStack() as tried:
            try:
                server = start_once(tried, directory, arguments)
            except StartError:
                if attempt == ATTEMPTS:
                    raise
            else:
                stack.enter_context(tried.pop_all())
                return server
    raise AssertionError("the last attempt returns or raises")


def start_once(stack: contextlib.ExitStack, directory: Path, arguments: Sequence[str]) -> Apiserver:
    """Choose ports, start both, wait until the apiserver is ready."""
    client, peer, secure = free_ports(3)
    token = write_credentials(directory)
    commands = {
        directory / "etcd.log": etcd_command(directory, client, peer),
        directory / "apiserver.log": [*apiserver_command(directory, client, secure), *arguments],
    }
    running = {log: stack.enter_context(process(command, log)) for log, command in commands.items()}
    server = describe(directory, secure, token, stack.enter_context(requests.Session()))
    await_ready(server, running)
    return server


def etcd_command(directory: Path, client: int, peer: int) -> list[str]:
    """One member, without fsync: the data is thrown away."""
    listen, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return [
        str(tool("etcd")),
        f"--data-dir={directory / f'etcd-{client}'}",
        f"--listen-client-urls={listen}",
        f"--advertise-client-urls={listen}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver_command(directory: Path, etcd_port: int, port: int) -> list[str]:
    """Loopback only; it makes its own certificate. No ServiceAccount admission, as nobody makes accounts here."""
    return [
        str(tool("kube-apiserver")),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={directory / 'certs'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--service-account-key-file={directory / 'sa.key'}",
        f"--service-account-signing-key-file={directory / 'sa.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--token-auth-file={directory / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
    ]


def write_credentials(directory: Path) -> str:
    """One administrator's token and a key for service account tokens."""
    token = secrets.token_hex(16)
    (directory / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n', encoding="utf-8")
    key = ["openssl", "genrsa", "-out", str(directory / "sa.key"), "2048"]
    subprocess.run(key, check=True, capture_output=True)
    return token


def describe(directory: Path, port: int, token: str, session: requests.Session) -> Apiserver:
    """Where the server will be, with a kubeconfig for kubectl, helm and the official client."""
    url, ca_file = f"https://127.0.0.1:{port}", directory / "certs" / "apiserver.crt"
    session.headers["Authorization"] = f"Bearer {token}"
    session.verify = str(ca_file)
    session.trust_env = False  # else REQUESTS_CA_BUNDLE or a proxy of the machine wins over the line above
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps(kubeconfig_content(url, token, ca_file)), encoding="utf-8")
    return Apiserver(url=url, token=token, ca_file=ca_file, kubeconfig=kubeconfig, session=session)


def kubeconfig_content(url: str, token: str, ca_file: Path) -> dict[str, Any]:
    """The one context of this server; JSON is YAML."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }


def await_ready(server: Apiserver, running: Mapping[Path, subprocess.Popen[bytes]]) -> None:
    """Wait for /readyz; a process that ended says why in its log."""
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(server):
        ended = [log for log, one in running.items() if one.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(tail(log) for log in ended or running)
            raise StartError(f"kube-apiserver did not become ready:\n{logs}")
        time.sleep(0.1)


def is_ready(server: Apiserver) -> bool:
    """False also while the certificate file or the socket is not there yet."""
    try:
        return server.session.get(server.url + "/readyz", timeout=30).status_code == 200
    except (OSError, requests.RequestException):
        return False


@contextlib.contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the length of the block; it dies with this one too."""
    with log.open("wb") as output, start(command, output) as running:
        try:
            yield running
        finally:
            stop(running)


def start(command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start in its own session, so that Ctrl-C ends it through `stop` and in order."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        list(command), stdout=output, stderr=output, start_new_session=True, preexec_fn=die_with_parent
    )


def stop(running: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL, to this one process id."""
    running.terminate()
    try:
        running.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
