"""Registries to push to: Debian's real one on loopback, and a small one that misbehaves on command."""

import hashlib
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from imagebuild import debian, store

# bcrypt of `s3cret` for the user `ci`; a password nobody has outside this test.
HTPASSWD = "ci:$2b$04$zRIx2W6dJfqcyqN01VqsWeg6e3bjI0r5KpxntuuyLfEMuumx1leIK\n"
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
log: {{level: error, accesslog: {{disabled: false}}}}
{auth}
"""


def registry_program(folder: Path) -> Path:
    """Unpack docker-registry from Debian's archive; nothing is installed and no service starts."""
    packages = debian.Archive(store.cache_folder() / "images", locked=False)
    lock = Path(__file__).with_name("packages").read_text()
    (deb,) = packages.fetch(debian.parse_lock(lock))
    subprocess.run(["dpkg-deb", "--extract", deb, folder], check=True)
    return folder / "usr/bin/docker-registry"


@contextmanager
def real_registry(program: Path, folder: Path, port: int, *, htpasswd: str = "") -> Iterator[str]:
    """Run docker-registry on loopback; with `htpasswd` it wants a login."""
    folder.mkdir()
    (folder / "htpasswd").write_text(htpasswd)
    auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}" if htpasswd else ""
    (folder / "config.yml").write_text(CONFIG.format(folder=folder / "data", port=port, auth=auth))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log, env=os.environ)
        try:
            _wait(f"http://127.0.0.1:{port}/v2/", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, if only to ask for a login
        except OSError:
            assert process.poll() is None, "docker-registry ended"
            time.sleep(0.05)
    raise AssertionError(f"{url}: no answer")


@dataclass
class Faults:
    """What the small registry is told to do, and what it saw."""

    busy: int = 0  # answer so many requests with 503
    cut: int = 0  # break so many uploads off in the middle
    token: str = ""  # want this bearer token
    refuse: str = ""  # refuse manifests with these words
    rewrite: bool = False  # store manifests under another digest
    uploads_at: str = ""  # send uploads to this other host
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    asked_tokens: list[tuple[str, str]] = field(default_factory=list)
    authorized: list[tuple[str, str]] = field(default_factory=list)  # path, Authorization


class _Handler(BaseHTTPRequestHandler):
    """The part of the distribution API a push uses, kept in memory."""

    protocol_version = "HTTP/1.1"
    faults: Faults

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _allowed(self) -> bool:
        """Answer what is wrong before the request is looked at; True when nothing is."""
        faults, given = self.faults, self.headers.get("Authorization", "")
        faults.authorized.append((self.path, given))
        if faults.busy:
            faults.busy -= 1
            self._say(503, b"busy", Retry_After="0")
        elif faults.token and given != f"Bearer {faults.token}":
            realm = f'Bearer realm="http://{self.headers["Host"]}/token",service="small",scope="x"'
            self._say(401, b"login", WWW_Authenticate=realm)
        else:
            return True
        return False

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        assert self.path.startswith("/token")
        query = dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))
        self.faults.asked_tokens.append((query["scope"], self.headers.get("Authorization", "")))
        self._say(200, f'{{"token": "{self.faults.token}"}}'.encode())

    def do_HEAD(self) -> None:
        if not self._allowed():
            return
        kind, name = self.path.split("/")[-2:]
        known = self.faults.blobs if kind == "blobs" else self.faults.manifests
        if name not in known:
            self._say(404)
        else:
            digest = f"sha256:{hashlib.sha256(known[name]).hexdigest()}"
            self._say(200, Docker_Content_Digest="sha256:other" if self.faults.rewrite else digest)

    def do_POST(self) -> None:
        self._body()
        if self._allowed():
            path = self.path.partition("?")[0]
            self._say(202, Location=f"{self.faults.uploads_at}{path}session?state=1")

    def do_PUT(self) -> None:
        if "/uploads/" in self.path and self.faults.cut:
            self.faults.cut -= 1
            self.rfile.read(10)
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        if self._allowed():
            self._upload(body) if "/uploads/" in self.path else self._manifest(body)

    def _upload(self, body: bytes) -> None:
        (digest,) = re.findall(r"digest=([^&]+)", self.path)
        name = urllib.parse.unquote(digest)
        assert name == f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.faults.blobs[name] = body
        self.faults.uploads += 1
        self._say(201)

    def _manifest(self, body: bytes) -> None:
        if self.faults.refuse:
            self._say(403, self.faults.refuse.encode())
        else:
            self.faults.manifests[self.path.rpartition("/")[2]] = body
            self._say(201)


@contextmanager
def small_registry(faults: Faults) -> Iterator[str]:
    """Serve on loopback until the block ends."""
    handler = type("Handler", (_Handler,), {"faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
