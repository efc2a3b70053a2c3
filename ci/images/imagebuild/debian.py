"""Turn a list of Debian packages into a tree.

In: a lock file (`NAME VERSION` a line) and the apt configuration of this machine. Out: the merged
file systems, plus what package scripts would have made (certificate bundle, package database for
scanners). Never installs anything, never writes outside the cache, never needs root.

The lock is a floor. An archive drops a version once it is fixed; then the newer one is taken and
said so on stderr. `--locked` refuses instead.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagebuild import elf, tree
from imagebuild.tree import Tree

BUNDLE = "etc/ssl/certs/ca-certificates.crt"
UNWANTED = re.compile(
    r"usr/share/(man|locale|lintian|info|doc-base|bash-completion|bug|gdb|menu|applications|pixmaps|common-licenses/)"
    r"|usr/share/doc/(?!.*/copyright$)"
    r"|usr/lib/[^/]+/(gconv|audit|perl-base)/|usr/lib/(systemd|valgrind|init|tmpfiles\.d)/"
    r"|etc/(init\.d|default|logrotate\.d|cron\.[a-z]+|ld\.so\.conf\.d|update-motd\.d|pam\.d)/"
)


class PackageError(Exception):
    """A message for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One line of a lock file."""

    name: str
    version: str


def parse_lock(text: str) -> list[Package]:
    """Read `NAME VERSION` lines; `#` starts a comment."""
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return [Package(name=line[0], version=line[1]) for line in lines if line]


def architecture() -> str:
    """Return Debian's name for this machine's architecture; OCI uses the same words."""
    return _run(["dpkg", "--print-architecture"]).strip()


def of_architecture(packages: Iterable[Package], name: str) -> list[Package]:
    """Name the packages that have an architecture in their names as this one calls them; a lock has amd64's names."""
    here = {"amd64": "x86-64", "arm64": "aarch64"}.get(name, name)
    return [replace(package, name=package.name.replace("x86-64", here)) for package in packages]


def file_system(archives: Sequence[Path]) -> Tree:
    """Unpack packages on top of each other and add what their scripts would have made."""
    merged: Tree = {}
    for archive in archives:
        files = tree.read_tar(_bytes(["dpkg-deb", "--fsys-tarfile", str(archive)]))
        merged |= tree.owned(tree.with_merged_usr(files), uid=0, gid=0)
        merged |= _database_entry(archive)
    merged = tree.without(merged, lambda path: UNWANTED.match(path) is not None)
    return _one_bundle(merged)


def _database_entry(archive: Path) -> Tree:
    """Record a package the way image scanners look for it where there is no dpkg."""
    name = _run(["dpkg-deb", "--field", str(archive), "Package"]).strip()
    control = _run(["dpkg-deb", "--field", str(archive)])
    return {f"var/lib/dpkg/status.d/{name}": tree.file(control)}


def _one_bundle(packages: Tree) -> Tree:
    """Concatenate the certificates as ca-certificates' script does, and drop the single files."""
    single = sorted(p for p in packages if p.startswith("usr/share/ca-certificates/") and p.endswith(".crt"))
    if not single:
        return packages
    rest = tree.without(packages, lambda path: path in single)
    bundle = b"".join(packages[path].data.rstrip(b"\n") + b"\n" for path in single)
    return rest | {
        BUNDLE: tree.file(bundle),
        "usr/lib/ssl/certs": tree.link("/etc/ssl/certs"),
        "usr/lib/ssl/cert.pem": tree.link(f"/{BUNDLE}"),
    }


def without_orphans(image: Tree) -> Tree:
    """Drop Python extension modules whose libraries are not in the image (they could only fail late)."""
    present = {path.rsplit("/", 1)[-1] for path in image}
    return tree.without(image, lambda path: "/lib-dynload/" in path and not elf.needed(image[path].data) <= present)


class Archive:
    """Fetches package files into one folder of the cache; a file that is there is not fetched again."""

    def __init__(self, folder: Path, *, locked: bool) -> None:
        self._debs = folder / "debs"
        self._lists = folder / "apt"
        self._locked = locked
        self._debs.mkdir(parents=True, exist_ok=True)

    def fetch(self, packages: Iterable[Package]) -> list[Path]:
        """Return one file for each package, in the order asked for."""
        wanted = list(packages)
        missing = [package for package in wanted if not self._have(package)]
        if missing:
            self._download(missing)
        return [self._file(package) for package in wanted]

    def newest(self, names: Iterable[str]) -> list[Package]:
        """Ask a fresh package list for the newest version of each name."""
        self._update()
        return [Package(name=name, version=self._candidate(name)) for name in names]

    def _have(self, package: Package) -> bool:
        return any(self._debs.glob(_pattern(package)))

    def _file(self, package: Package) -> Path:
        return next(self._debs.glob(_pattern(package)))

    def _download(self, packages: Sequence[Package]) -> None:
        """Try this machine's package lists, then fresh ones, then newer versions."""
        if self._get(packages, options=[]):
            return
        self._update()
        for package in packages:
            if not self._have(package) and not self._get([package], options=self._private()):
                self._take_newer(package)

    def _take_newer(self, package: Package) -> None:
        newer = Package(name=package.name, version=self._candidate(package.name))
        newer_is_newer = ["dpkg", "--compare-versions", newer.version, "gt", package.version]
        allowed = not self._locked and subprocess.run(newer_is_newer, check=False).returncode == 0
        if not allowed or not self._get([newer], options=self._private()):
            raise PackageError(
                f"{package.name} {package.version} is not to be had (the archive offers {newer.version}); "
                "`ci/images/build --lock` writes the versions of today into images/*/packages"
            )
        print(f"images: {package.name} {package.version} is gone, using {newer.version}", file=sys.stderr)
        stand_in = self._debs / _name(package, self._file(newer))
        stand_in.symlink_to(self._file(newer).name)

    def _get(self, packages: Sequence[Package], *, options: Sequence[str]) -> bool:
        """Download all or nothing; `apt-get download` checks the signatures of the archive."""
        asked = [f"{package.name}={package.version}" for package in packages]
        with tempfile.TemporaryDirectory(dir=self._debs) as scratch:
            command = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", *options, "download", *asked]
            done = subprocess.run(command, cwd=scratch, capture_output=True, check=False)
            for file in Path(scratch).glob("*.deb"):
                file.rename(self._debs / file.name)
        return done.returncode == 0

    def _private(self) -> list[str]:
        """Package lists of our own: refreshing the machine's needs root and is not ours to do."""
        settings = {"Dir::State::lists": self._lists / "lists", "Dir::Cache": self._lists / "cache"}
        return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def _update(self) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (self._lists / name).mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", *self._private(), "update"])

    def _candidate(self, name: str) -> str:
        answer = _run(["apt-cache", *self._private(), "policy", name])
        found = re.search(r"Candidate: (\S+)", answer)
        if found is None or found[1] == "(none)":
            raise PackageError(
                f"apt offers no package {name}: this builder needs the package lists of Debian 12; "
                "elsewhere build images/*/Containerfile with Docker, Podman or Buildah"
            )
        return found[1]


def _pattern(package: Package) -> str:
    """Match the file apt writes for a package: `:` is escaped, the architecture is this one or `all`."""
    return f"{package.name}_{package.version.replace(':', '%3a')}_*.deb"


def _name(package: Package, like: Path) -> str:
    return f"{package.name}_{package.version.replace(':', '%3a')}_{like.stem.rsplit('_', 1)[-1]}.deb"


def _run(command: Sequence[str]) -> str:
    return _bytes(command).decode()


def _bytes(command: Sequence[str]) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise PackageError(
            f"{command[0]} is not on this machine: the builder needs Debian's tools; "
            "elsewhere build images/*/Containerfile with Docker, Podman or Buildah"
        ) from None
    except subprocess.CalledProcessError as failure:
        raise PackageError(f"{' '.join(command)}: {failure.stderr.decode().strip()}") from failure
