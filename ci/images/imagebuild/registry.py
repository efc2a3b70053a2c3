"""Push images to a registry over the distribution HTTP API.

In: an OCI archive, a registry, credentials. Out: the image under its digest and tag. What the registry
already has is not sent again. Answers that pass (429, 5xx, broken connections) are tried again with
growing pauses; a refusal is reported with the registry's own words.
"""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from io import BytesIO
from typing import IO

from imagebuild.archive import Blob, OciArchive
from imagebuild.credentials import Credentials

ATTEMPTS = 6
CHUNK = 1 << 20
TIMEOUT_SECONDS = 60.0
PARAMETER = re.compile(r'(\w+)="([^"]*)"')
PASSING = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.REQUEST_TIMEOUT,
    *(status for status in HTTPStatus if status >= 500),
}


class RegistryError(Exception):
    """A message for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response, read whole: manifests and tokens are small, blobs only go up."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request body that can be opened again for another attempt."""

    open: Callable[[], IO[bytes]]
    size: int

    def chunks(self) -> Iterator[bytes]:
        with self.open() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


@dataclass(kw_only=True)
class Registry:
    """A registry host with a path below which all repositories lie."""

    base: str
    prefix: str
    credentials: Credentials | None
    opener: urllib.request.OpenerDirector = field(default_factory=urllib.request.build_opener)
    pause: Callable[[float], None] = time.sleep
    _tokens: dict[str, str] = field(default_factory=dict)
    _holders: dict[str, str] = field(default_factory=dict)

    def push(self, image: OciArchive, repository: str, tag: str) -> str:
        """Send blobs, then the manifest; return the digest the registry stored it under."""
        name = f"{self.prefix}/{repository}".lstrip("/")
        for blob in image.blobs:
            self._send_blob(image, name, blob)
            self._holders[blob.digest] = name
        path = f"/v2/{name}/manifests/{tag}"
        body = _whole(image.manifest)
        self._expect("PUT", path, name, HTTPStatus.CREATED, body=body, content_type=image.media_type)
        return self._stored_digest(image, name, tag)

    def _stored_digest(self, image: OciArchive, name: str, tag: str) -> str:
        """Read the tag back: a registry that rewrote the manifest must not pass for a copy."""
        accept = {"Accept": image.media_type}
        answer = self._expect("HEAD", f"/v2/{name}/manifests/{tag}", name, HTTPStatus.OK, headers=accept)
        stored = answer.headers.get("Docker-Content-Digest", image.digest)
        if stored != image.digest:
            raise RegistryError(f"{name}:{tag} is {stored} in the registry, {image.digest} was sent")
        return image.digest

    def _send_blob(self, image: OciArchive, name: str, blob: Blob) -> None:
        if self._call("HEAD", f"/v2/{name}/blobs/{blob.digest}", name).status == HTTPStatus.OK:
            return
        for attempt in range(ATTEMPTS):
            location = self._start_upload(name, blob)
            if location is None or self._upload(image, name, blob, location):
                return
            self.pause(_backoff(attempt))
        raise RegistryError(f"{name}: {blob.digest} could not be sent in {ATTEMPTS} attempts")

    def _start_upload(self, name: str, blob: Blob) -> str | None:
        """Open an upload; None when the registry took the blob over from a sibling repository."""
        query = {"mount": blob.digest, "from": self._holders[blob.digest]} if blob.digest in self._holders else {}
        path = f"/v2/{name}/blobs/uploads/" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        answer = self._call("POST", path, name, body=_whole(b""))
        if answer.status == HTTPStatus.CREATED:
            return None
        if answer.status != HTTPStatus.ACCEPTED:
            raise RegistryError(_refusal("POST", path, answer))
        return urllib.parse.urljoin(self.base, str(answer.headers["Location"]))

    def _upload(self, image: OciArchive, name: str, blob: Blob, location: str) -> bool:
        """Send a blob in one request; False when a new upload may succeed."""
        separator = "&" if "?" in location else "?"
        target = f"{location}{separator}{urllib.parse.urlencode({'digest': blob.digest})}"
        body = Body(open=lambda: image.open(blob), size=blob.size)
        answer = self._call("PUT", target, name, body=body, attempts=1)
        lost = answer.status in PASSING or answer.status == HTTPStatus.NOT_FOUND
        if answer.status != HTTPStatus.CREATED and not lost:
            raise RegistryError(_refusal("PUT", target, answer))
        return not lost

    def _expect(
        self,
        method: str,
        path: str,
        name: str,
        status: int,
        *,
        body: Body | None = None,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        answer = self._call(method, path, name, body=body, content_type=content_type, headers=headers)
        if answer.status != status:
            raise RegistryError(_refusal(method, path, answer))
        return answer

    def _call(
        self,
        method: str,
        path: str,
        name: str,
        *,
        body: Body | None = None,
        content_type: str = "application/octet-stream",
        headers: Mapping[str, str] | None = None,
        attempts: int = ATTEMPTS,
    ) -> Answer:
        """Make a request, logging in when asked to and trying again what may pass."""
        url = urllib.parse.urljoin(self.base, path)
        answer = Answer(status=HTTPStatus.SERVICE_UNAVAILABLE, headers=Message(), body=b"no answer")
        for attempt in range(attempts):
            answer = self._once(method, url, name, body, content_type, headers or {})
            if answer.status == HTTPStatus.UNAUTHORIZED:
                self._log_in(name, answer)
                answer = self._once(method, url, name, body, content_type, headers or {})
            if answer.status not in PASSING:
                return answer
            if attempt + 1 < attempts:
                self.pause(_retry_after(answer, _backoff(attempt)))
        return answer

    def _once(
        self, method: str, url: str, name: str, body: Body | None, content_type: str, headers: Mapping[str, str]
    ) -> Answer:
        request = urllib.request.Request(url, method=method, headers=dict(headers))
        if body is not None:
            request.data = body.chunks()
            request.add_header("Content-Length", str(body.size))
            request.add_header("Content-Type", content_type)
        # A token is for this registry only; an upload may be sent on to a storage of another host.
        if url.startswith(self.base) and name in self._tokens:
            request.add_header("Authorization", self._tokens[name])
        return self._open(request)

    def _open(self, request: urllib.request.Request) -> Answer:
        try:
            with self.opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                return Answer(status=response.status, headers=response.headers, body=response.read())
        except urllib.error.HTTPError as refused:
            return Answer(status=refused.code, headers=refused.headers, body=refused.read())
        except (urllib.error.URLError, ConnectionError, TimeoutError) as broken:
            return Answer(status=HTTPStatus.SERVICE_UNAVAILABLE, headers=Message(), body=str(broken).encode())

    def _log_in(self, name: str, refused: Answer) -> None:
        """Answer a challenge: Basic with the password, Bearer with a token asked for at its realm."""
        challenge = refused.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self.credentials:
            self._tokens[name] = self.credentials.basic
        elif scheme.lower() == "bearer":
            parameters = dict(PARAMETER.findall(rest))
            self._tokens[name] = f"Bearer {self._token(name, parameters)}"
        else:
            raise RegistryError(
                f"{self.base} wants a login: `docker login` or `podman login` first, or set "
                "LLMFLEET_REGISTRY_USERNAME and LLMFLEET_REGISTRY_PASSWORD"
            )

    def _token(self, name: str, challenge: Mapping[str, str]) -> str:
        form = {"service": challenge.get("service", ""), "scope": f"repository:{name}:pull,push"}
        login = self.credentials
        if login and login.identity_token:
            form |= {"grant_type": "refresh_token", "refresh_token": login.identity_token, "client_id": "llmfleet"}
            data = urllib.parse.urlencode(form).encode()
            request = urllib.request.Request(challenge["realm"], data=data)
        else:
            request = urllib.request.Request(f"{challenge['realm']}?{urllib.parse.urlencode(form)}")
            if login:
                request.add_header("Authorization", login.basic)
        answer = self._open(request)
        if answer.status != HTTPStatus.OK:
            raise RegistryError(_refusal("GET", challenge["realm"], answer))
        granted = json.loads(answer.body)
        return str(granted.get("token") or granted["access_token"])


def _whole(data: bytes) -> Body:
    return Body(open=lambda: BytesIO(data), size=len(data))


def _backoff(attempt: int) -> float:
    """Wait 0.5 s, 1 s, 2 s, ... up to 8 s."""
    return float(min(0.5 * 2**attempt, 8.0))


def _retry_after(answer: Answer, otherwise: float) -> float:
    asked = answer.headers.get("Retry-After", "")
    return float(min(int(asked), 60)) if asked.isdigit() else otherwise


def _refusal(method: str, path: str, answer: Answer) -> str:
    said = answer.body.decode(errors="replace").strip()[:500]
    return f"{method} {urllib.parse.urlsplit(path).path}: HTTP {answer.status} {said}".strip()
