"""Pushing: to Debian's real registry and back, and past what registries and networks do on bad days."""

import base64
import hashlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_driver import REPOSITORY, Built
from imagebuild import archive, credentials, oci, registry, store, tree
from registries import HTPASSWD, Faults, real_registry, registry_program, small_registry

from fakes.ports import free_port

pytestmark = pytest.mark.images
LOGIN = {"LLMFLEET_REGISTRY_USERNAME": "ci", "LLMFLEET_REGISTRY_PASSWORD": "s3cret"}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return registry_program(tmp_path_factory.mktemp("docker-registry"))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def small_image(tmp_path: Path) -> Path:
    """An archive of two layers, one of them large enough to be cut in the middle."""
    contents = ({"a": tree.file(os.urandom(3 << 20))}, {"b": tree.file("b")})
    layers = [oci.write_layer(content, tmp_path / f"{number}.gz") for number, content in enumerate(contents)]
    path = tmp_path / "image.tar"
    oci.write_archive(
        path, reference="localhost/llmfleet/small:1", architecture="amd64", config={"User": "1:1"}, layers=layers
    )
    return path


def push(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ci/images/push` with no login of this machine's user."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DOCKER_", "REGISTRY_", "LLMFLEET_REG"))
    }
    clean |= {"LLMFLEET_CACHE": str(store.cache_folder()), "HOME": "/nonexistent"} | environment
    command = [str(REPOSITORY / "ci/images/push"), *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=900, check=False)


def archives(built: dict[str, Built], *names: str) -> list[str]:
    """Name archives on the command line, so that an edit meanwhile builds no others."""
    return [f"--archive={built[name].path}" for name in names]


def fetch(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as response:
        return bytes(response.read())


def test_images_pushed_to_a_real_registry_come_back_with_equal_digests(
    built: dict[str, Built], program: Path, port: int, tmp_path: Path
) -> None:
    names = ("sim", "redis")
    with real_registry(program, tmp_path / "registry", port) as host:
        done = push("--registry", f"{host}/team/a", *archives(built, *names))
        assert done.returncode == 0, done.stderr
        for line, name in zip(done.stdout.splitlines(), names, strict=True):
            image = built[name]
            target = image.reference.replace("localhost/", f"{host}/team/a/")
            assert line == f"{target}@{image.descriptor['digest']}"
            repository, _, tag = target.removeprefix(f"{host}/").rpartition(":")
            manifest = fetch(f"http://{host}/v2/{repository}/manifests/{tag}", Accept=image.descriptor["mediaType"])
            assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == image.descriptor["digest"]
            for part in (image.manifest["config"], *image.manifest["layers"]):
                assert fetch(f"http://{host}/v2/{repository}/blobs/{part['digest']}") == image.blob(part["digest"])


def test_a_second_push_sends_no_blob_and_shared_layers_are_sent_once(
    built: dict[str, Built], program: Path, port: int, tmp_path: Path
) -> None:
    log = tmp_path / "registry" / "log"
    with real_registry(program, tmp_path / "registry", port) as host:
        assert push("--registry", host, *archives(built, "llmfleet", "sim")).returncode == 0
        first = log.read_text().count("PUT /v2/llmfleet/engine-sim/blobs/uploads/")
        assert first == 2, "only the simulator's own layer and its config"
        assert push("--registry", host, *archives(built, "llmfleet", "sim")).returncode == 0
        assert log.read_text().count("PUT /v2/llmfleet/engine-sim/blobs/uploads/") == first


def test_a_registry_with_a_login_takes_it_from_the_environment_or_dockers_file(
    small_image: Path, program: Path, port: int, tmp_path: Path
) -> None:
    auth = base64.b64encode(b"ci:s3cret").decode()
    with real_registry(program, tmp_path / "registry", port, htpasswd=HTPASSWD) as host:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        nobody = push("--registry", host, "--archive", small_image)
        wrong = push("--registry", host, "--archive", small_image, **(LOGIN | {"LLMFLEET_REGISTRY_PASSWORD": "no"}))
        right = push("--registry", host, "--archive", small_image, **LOGIN)
        file = push("--registry", host, "--archive", small_image, DOCKER_CONFIG=str(tmp_path))
    assert (nobody.returncode, wrong.returncode) == (2, 2)
    assert "docker login" in nobody.stderr and "401" in wrong.stderr
    assert "s3cret" not in right.stderr + right.stdout
    assert (right.returncode, file.returncode) == (0, 0), right.stderr + file.stderr


def send(image: Path, host: str, login: credentials.Credentials | None = None) -> Iterator[float]:
    """Push with a clock that does not wait, and return the pauses it would have made."""
    pauses: list[float] = []
    target = registry.Registry(base=f"http://{host}", prefix="p", credentials=login, pause=pauses.append)
    with archive.OciArchive(image) as opened:
        target.push(opened, "small", "1")
    return iter(pauses)


def test_a_busy_registry_is_asked_again_after_the_pause_it_names(small_image: Path) -> None:
    faults = Faults(busy=3)
    with small_registry(faults) as host:
        assert list(send(small_image, host)) == [0.0, 0.0, 0.0]
    assert len(faults.blobs) == 3 and "1" in faults.manifests


def test_a_registry_that_stays_busy_is_given_up_with_its_words(small_image: Path) -> None:
    with small_registry(Faults(busy=1000)) as host, pytest.raises(registry.RegistryError, match="503 busy"):
        send(small_image, host)


def test_an_upload_that_breaks_off_is_started_again_from_the_beginning(small_image: Path) -> None:
    faults = Faults(cut=2)
    with small_registry(faults) as host:
        assert list(send(small_image, host)) == [0.5, 1.0]
    assert faults.uploads == 3


def test_a_registry_that_is_not_there_is_an_error_and_not_a_hang(small_image: Path, port: int) -> None:
    with pytest.raises(registry.RegistryError, match="refused"):
        send(small_image, f"127.0.0.1:{port}")


def test_a_bearer_token_is_asked_for_once_with_the_password(small_image: Path) -> None:
    faults = Faults(token="t0ken")
    login = credentials.Credentials(username="ci", password="s3cret")
    with small_registry(faults) as host:
        send(small_image, host, login)
    assert faults.asked_tokens == [("repository:p/small:pull,push", login.basic)]
    assert {given for _, given in faults.authorized[1:]} == {"Bearer t0ken"}


def test_a_storage_on_another_host_never_sees_the_token(small_image: Path) -> None:
    elsewhere = Faults()
    with small_registry(elsewhere) as storage:
        faults = Faults(token="t0ken", uploads_at=f"http://{storage}", blobs=elsewhere.blobs)
        with small_registry(faults) as host:
            send(small_image, host)
    assert elsewhere.uploads == 3
    assert {given for _, given in elsewhere.authorized} == {""}


def test_a_refusal_is_reported_in_the_registrys_words(small_image: Path) -> None:
    faults = Faults(refuse="quota exceeded")
    with small_registry(faults) as host, pytest.raises(registry.RegistryError, match="403 quota exceeded"):
        send(small_image, host)


def test_a_registry_that_rewrote_the_manifest_does_not_pass_for_a_copy(small_image: Path) -> None:
    with small_registry(Faults(rewrite=True)) as host, pytest.raises(registry.RegistryError, match="sha256:other"):
        send(small_image, host)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://registry.example.com", "without a scheme"),
        ("registry.example.com/Team", "is no registry"),
        ("", "is no registry"),
        ("docker.io/me", "Docker Hub"),
    ],
)
def test_an_address_that_cannot_work_is_refused_before_anything_is_built(address: str, words: str) -> None:
    done = push("--registry", address, LLMFLEET_CACHE="/nonexistent/cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_credential_helper_is_asked_and_its_token_is_exchanged(tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text('#!/bin/sh\nread host\necho "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"for $host\\"}"\n')
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credHelpers": {"r.example.com": "fake"}}')
    environment = {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{path}"
    try:
        found = credentials.find("r.example.com", environment)
    finally:
        os.environ["PATH"] = path
    assert found == credentials.Credentials(username="", identity_token="for r.example.com")
    assert "for r.example.com" not in repr(found)


def test_without_any_login_there_are_no_credentials(tmp_path: Path) -> None:
    assert credentials.find("r.example.com", {"HOME": str(tmp_path)}) is None
