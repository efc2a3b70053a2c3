"""Everything the benchmark needs that is not this project: two C programs, Debian's proxies, PyPI's routers.

In: names. Out: paths of what can be run, from the cache or made now; `Missing` with one clear line when a thing cannot
be had. Nothing is installed on the machine: C sources are compiled, Debian packages unpacked and Python packages put
into environments of their own, all inside the cache and named by the hash of what decides their content.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
COMPILE = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
INSTALL_SECONDS = 600


class Missing(Exception):
    """A program that cannot be had here, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deb:
    """A program of Debian's: where the machine has it, or which packages hold it and its libraries."""

    binary: str
    packages: tuple[str, ...]


NGINX = Deb(binary="usr/sbin/nginx", packages=("nginx",))
HAPROXY = Deb(
    binary="usr/sbin/haproxy", packages=("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")
)


def cache() -> Path:
    """Return the folder that keeps what is downloaded or built."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("LLMFLEET_CACHE") or os.path.join(base, "llmfleet")) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compiled(name: str) -> Path:
    """Return the program made of `name`.c by the machine's C compiler."""
    source = HERE / f"{name}.c"
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise Missing("no C compiler: install gcc or set CC")

    def make(target: Path) -> None:
        _run([compiler, *COMPILE, "-o", str(target / name), str(source)], f"compiling {name}.c")

    return _kept(name, [source.read_bytes(), " ".join(COMPILE).encode(), compiler.encode()], make) / name


def from_debian(deb: Deb) -> tuple[str, dict[str, str]]:
    """Return the path of a program of Debian's and the environment it needs."""
    name = Path(deb.binary).name
    there = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if there:
        return there, {}
    if not shutil.which("apt-get"):
        raise Missing(f"{name} is not installed and this is no Debian: install {name}")
    folder = _kept(name, [" ".join(deb.packages).encode()], lambda target: _unpack(deb, target))
    libraries = sorted({str(Path(path).parent) for path in glob.glob(f"{folder}/usr/lib/**/*.so.*", recursive=True)})
    return str(folder / deb.binary), {"LD_LIBRARY_PATH": ":".join(libraries)}


def _unpack(deb: Deb, target: Path) -> None:
    downloads = target / "downloads"
    downloads.mkdir()
    fetch = ["apt-get", "download", "-q", *deb.packages]
    try:
        _run(fetch, f"downloading {' '.join(deb.packages)}", cwd=downloads)
    except Missing:
        _run(["apt-get", "update", "-q"], "refreshing the package lists")
        _run(fetch, f"downloading {' '.join(deb.packages)}", cwd=downloads)
    for package in sorted(downloads.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(target)], f"unpacking {package.name}")
    shutil.rmtree(downloads)


def environment(name: str) -> Path:
    """Return the folder of a Python environment that holds exactly requirements/`name`.txt."""
    lock = HERE / "requirements" / f"{name}.txt"
    uv = ROOT / ".venv" / "bin" / "uv"
    if not uv.exists():
        raise Missing("run `make setup` first")

    def make(target: Path) -> None:
        _run([str(uv), "venv", "--quiet", "--relocatable", "--python", sys.executable, str(target / "venv")], "venv")
        python = str(target / "venv" / "bin" / "python")
        install = [str(uv), "pip", "sync", "--quiet", "--python", python, "--require-hashes", str(lock)]
        _run(install, f"installing {name} (hash-locked, once)")

    return _kept(name, [lock.read_bytes(), sys.version.encode()], make) / "venv"


def image() -> tuple[list[str], dict[str, str]]:
    """Return the command of the image's `llmfleet` and its environment: what clusters run, byte for byte."""
    build = [str(ROOT / "ci/images/build"), "llmfleet"]
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"the image: {done.stderr.strip()[-300:]}")
    archive = Path(done.stdout.split(" ", 1)[1].strip())
    lay_out = [build[0], "--tree"]
    root = _kept(
        "image", [archive.name.encode()], lambda to: _run([*lay_out, str(to), "llmfleet"], "laying out the image")
    )
    loader = next(iter(sorted(root.glob("usr/lib*/ld-linux-*.so.*"))))
    libraries = ":".join(map(str, root.glob("usr/lib/*-linux-gnu")))
    python = next(root.glob("usr/bin/python3.*"))
    command = [str(loader), "--library-path", libraries, str(python), "-Psu", "-m", "llmfleet"]
    packages = next(root.glob("usr/local/lib/python3.*/dist-packages"))
    return command, {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(packages)}


def _kept(name: str, inputs: list[bytes], make: Callable[[Path], None]) -> Path:
    """Return the cache's folder of these inputs, making it first; it appears by one rename, so it is always whole."""
    folder = cache() / f"{name}-{hashlib.sha256(b'|'.join(inputs)).hexdigest()[:16]}"
    if folder.exists():
        return folder
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        make(scratch)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _run(command: list[str], what: str, cwd: Path | None = None) -> None:
    say(f"bench: {what} ...")
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except FileNotFoundError:
        raise Missing(f"{what}: {command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{what}: not done after {INSTALL_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        raise Missing(f"{what}: {lines[-1] if lines else f'status {error.returncode}'}") from None
