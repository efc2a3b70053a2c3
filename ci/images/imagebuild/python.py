"""Turn locked requirements and this checkout's packages into trees for the image's Python 3.11.

In: a hash-locked requirements file, package folders, entry points. Out: trees below
/usr/local, byte code included. Downloads go through pip and land in the cache; nothing is
installed into the Python that runs this, and that Python's version does not matter.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from imagebuild import tree
from imagebuild.tree import Entry, Tree

VERSION = "3.11"
SITE = f"usr/local/lib/python{VERSION}/dist-packages"
# -P and -s: what happens to lie in the working folder or in HOME is not importable. -u: logs are not held back.
SHEBANG = f"#!/usr/bin/python{VERSION} -Psu"
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
UNWANTED = re.compile(
    r"bin/|.*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|sboms/)|.*\.pyc$|.*/(tests?|testing)/|.*\.(pyx|pxd|c|h)$"
    # The asyncio half of the Kubernetes client doubles it; ours is the threaded one.
    r"|kubernetes/aio/|kubernetes/docs/|aiohttp_retry"
)


class PythonError(Exception):
    """A message for the person at the terminal."""


def requirements(lock: Path, *, architecture: str, cache: Path) -> Tree:
    """Install exactly the locked wheels into a tree; a file whose hash is not in the lock is refused."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [*pip(cache), "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes", "--no-warn-conflicts"]
        command += ["--target", scratch, *_platform(architecture), "--requirement", str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PythonError(f"pip could not install {lock}:\n{done.stderr.strip()}")
        installed = tree.read_folder(Path(scratch))
    wanted = tree.without(installed, lambda path: UNWANTED.match(path) is not None)
    return tree.below(SITE, wanted)


def _platform(architecture: str) -> list[str]:
    """Name the image's Python, so that the wheels fit it whatever Python runs pip."""
    machine = MACHINES[architecture]
    platforms = [f"--platform={name}_{machine}" for name in PLATFORMS]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={VERSION}", *platforms]


def pip(cache: Path) -> list[str]:
    """Return a pip to run: this Python's, or one in a virtual environment made for it."""
    probe = [sys.executable, "-m", "pip", "--version"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    own = cache / "pip"
    if not (own / "bin/pip").exists():
        subprocess.run([sys.executable, "-m", "venv", str(own)], check=True, stdout=sys.stderr)
    return [str(own / "bin/python"), "-m", "pip", "--disable-pip-version-check"]


def package(folder: Path) -> Tree:
    """Read one import package of this checkout, data files included."""
    if not (folder / "__init__.py").exists():
        raise PythonError(f"{folder} is no Python package: it has no __init__.py")
    source = tree.read_folder(folder, skip=lambda path: "__pycache__" in path or path.endswith(".pyc"))
    return tree.below(f"{SITE}/{folder.name}", source)


def metadata(name: str, version: str, scripts: Mapping[str, str]) -> Tree:
    """Say which distribution this is, for `importlib.metadata` and for scanners."""
    info = f"{SITE}/{name}-{version}.dist-info"
    points = "".join(f"{script} = {target}\n" for script, target in sorted(scripts.items()))
    return {
        f"{info}/METADATA": tree.file(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
        f"{info}/entry_points.txt": tree.file(f"[console_scripts]\n{points}"),
    }


def scripts(targets: Mapping[str, str]) -> Tree:
    """Make one executable per console script in /usr/local/bin."""
    return {f"usr/local/bin/{name}": tree.file(_script(target), mode=0o755) for name, target in targets.items()}


def _script(target: str) -> str:
    module, _, function = target.partition(":")
    return f"{SHEBANG}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"


def byte_code(sources: Tree, base: Mapping[str, Entry], *, cache: Path) -> Tree:
    """Compile every module of `sources` with the Python in `base`; returns the .pyc files alone.

    The image's own interpreter does it, one process in a fixed order, so the bytes depend on
    nothing of this machine. `unchecked-hash`: no source file is looked at on start-up.
    """
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        root = Path(scratch)
        tree.write_folder(tree.with_parents(dict(base) | sources), root)
        roots = sorted({_import_root(path) for path in sources if path.endswith(".py")})
        _compile(root, roots)
        compiled = tree.read_folder(root, skip=lambda path: not path.endswith(".pyc"))
    return {path: entry for path, entry in compiled.items() if path not in base}


def _import_root(path: str) -> str:
    """Return the folder below which a module lies: a lib folder of Python's, whole."""
    return next(root for root in (SITE, f"usr/lib/python{VERSION}", "usr/lib/python3") if path.startswith(f"{root}/"))


def _compile(root: Path, folders: list[str]) -> None:
    """Run compileall through the image's own loader: no chroot, no privilege."""
    loader = next(path for path in sorted(root.glob("usr/lib*/ld-linux-*.so.*")))
    libraries = ":".join(str(path) for path in (root / "usr/lib").glob("*-linux-gnu"))
    command = [str(loader), "--library-path", libraries, str(root / f"usr/bin/python{VERSION}"), "-S", "-P", "-s"]
    command += ["-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    command += [str(root / folder) for folder in folders]
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PATH": os.defpath}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PythonError(f"byte code: {done.stdout.strip()}\n{done.stderr.strip()}")
