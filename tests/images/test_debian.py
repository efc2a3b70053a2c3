"""Getting packages when the archive has moved on, and when there is no archive. apt is played by a script."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from imagebuild import debian
from imagebuild.debian import Package

pytestmark = pytest.mark.images
APT_GET = """#!/bin/sh
# Offers the one version in $OFFERED; notes what it was asked for.
echo "$@" >> $NOTES
for last; do :; done
case "$*" in
*update) exit 0 ;;
*"download "*"=$OFFERED") : > "${last%%=*}_$(echo "$OFFERED" | sed s/:/%3a/)_amd64.deb" ;;
*) exit 100 ;;
esac
"""
APT_CACHE = '#!/bin/sh\necho "x:"\necho "  Candidate: $OFFERED"\n'


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., debian.Archive]:
    """Make an archive that offers one version of everything."""
    (tmp_path / "bin").mkdir()
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))

    def offering(version: str, *, locked: bool = False) -> debian.Archive:
        monkeypatch.setenv("OFFERED", version)
        return debian.Archive(tmp_path / "cache", locked=locked)

    return offering


WANTED = Package(name="libx1", version="1:2.0-1")


def test_a_package_is_downloaded_once(archive: Callable[..., debian.Archive], tmp_path: Path) -> None:
    first = archive("1:2.0-1").fetch([WANTED])
    asked = (tmp_path / "notes").read_text()
    assert archive("1:2.0-1").fetch([WANTED]) == first
    assert (tmp_path / "notes").read_text() == asked and asked.count("download") == 1


def test_a_fixed_version_replaces_one_that_is_gone_and_is_named(
    archive: Callable[..., debian.Archive], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = archive("1:2.0-1+deb12u1").fetch([WANTED])
    assert found.resolve().name == "libx1_1%3a2.0-1+deb12u1_amd64.deb"
    assert "libx1 1:2.0-1 is gone, using 1:2.0-1+deb12u1" in capsys.readouterr().err


def test_an_older_version_is_never_taken(archive: Callable[..., debian.Archive]) -> None:
    with pytest.raises(debian.PackageError, match="--lock"):
        archive("1:1.9").fetch([WANTED])


def test_a_locked_build_takes_no_other_version(archive: Callable[..., debian.Archive]) -> None:
    with pytest.raises(debian.PackageError, match=r"offers 1:2\.1"):
        archive("1:2.1", locked=True).fetch([WANTED])


def test_a_system_without_such_a_package_is_told_what_to_use_instead(archive: Callable[..., debian.Archive]) -> None:
    with pytest.raises(debian.PackageError, match="Containerfile"):
        archive("(none)").fetch([WANTED])


def test_a_system_without_debians_tools_is_told_what_to_use_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(debian.PackageError, match="Containerfile"):
        debian.architecture()


def test_certificates_become_one_bundle_where_programs_look_for_it(tmp_path: Path) -> None:
    """What ca-certificates' own script does when it is installed; here no script runs."""
    control = tmp_path / "package/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text("Package: certs\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: x\n")
    folder = tmp_path / "package/usr/share/ca-certificates/mozilla"
    folder.mkdir(parents=True)
    (folder / "b.crt").write_text("B\n")
    (folder / "a.crt").write_text("A")
    subprocess.run(["dpkg-deb", "--build", tmp_path / "package", tmp_path / "x.deb"], check=True, capture_output=True)
    found = debian.file_system([tmp_path / "x.deb"])
    assert found[debian.BUNDLE].data == b"A\nB\n"
    assert found["usr/lib/ssl/cert.pem"].target == f"/{debian.BUNDLE}"
    assert not [path for path in found if path.endswith(("a.crt", "b.crt"))]
    assert b"Package: certs" in found["var/lib/dpkg/status.d/certs"].data
