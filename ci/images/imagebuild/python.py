"""Turn locked requirements and this checkout's packages into trees for the image's Python 3.11.

In: a hash-locked requirements file, package folders, entry points. Out: trees below
/usr/local, byte code included. pip and the compiler run in the image's own Python, unpacked for the
while, so the version of the Python that runs this does not matter.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagebuild import tree
from imagebuild.tree import Entry, Tree

VERSION = "3.11"
SITE = f"usr/local/lib/python{VERSION}/dist-packages"
# -P and -s: what happens to lie in the working folder or in HOME is not importable. -u: logs are not held back.
SHEBANG = f"#!/usr/bin/python{VERSION} -Psu"
UNWANTED = re.compile(
    r"bin/|.*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|sboms/)|.*\.pyc$|.*/(tests?|testing)/|.*\.(pyx|pxd|c|h)$"
    # The asyncio half of the Kubernetes client doubles it; ours is the threaded one.
    r"|kubernetes/aio/|kubernetes/docs/|aiohttp_retry"
)


class PythonError(Exception):
    """A message for the person at the terminal."""


def requirements(
    lock: Path,
    base: Mapping[str, Entry],
    pip: Mapping[str, Entry],
    *,
    cache: Path,
    unwanted: re.Pattern[str] = UNWANTED,
) -> Tree:
    """Install exactly the locked wheels into a tree; a file whose hash is not in the lock is refused.

    The image's own Python runs pip, because pip reads markers such as `python_full_version` from the
    Python it runs in, whatever it is told to install for.
    """
    with unpacked(dict(base) | dict(pip), cache) as root:
        (wheel,) = root.glob("usr/share/python-wheels/pip-*.whl")
        target = root / "target"
        arguments = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile", "--no-deps"]
        arguments += ["--require-hashes", "--only-binary=:all:", "--target", str(target), "--requirement", str(lock)]
        run(root, arguments, os.environ | {"PYTHONPATH": str(wheel)})
        installed = tree.read_folder(target)
    return tree.below(SITE, tree.without(installed, lambda path: unwanted.match(path) is not None))


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
    # A spawned worker process imports this file again and must not start over.
    start = f'if __name__ == "__main__":\n    sys.exit({function}())\n'
    return f"{SHEBANG}\nimport sys\n\nfrom {module} import {function}\n\n{start}"


def byte_code(sources: Tree, base: Mapping[str, Entry], *, cache: Path) -> Tree:
    """Compile every module of `sources` with the Python in `base`; returns the .pyc files alone.

    The image's own interpreter does it, one process in a fixed order, so the bytes depend on
    nothing of this machine. `unchecked-hash`: no source file is looked at on start-up.
    """
    with unpacked(dict(base) | sources, cache) as root:
        folders = sorted({_import_root(path) for path in sources if path.endswith(".py")})
        arguments = ["-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        arguments += ["-s", str(root), "-p", "/", *(str(root / folder) for folder in folders)]
        run(root, arguments, {"PATH": os.defpath})
        compiled = tree.read_folder(root, skip=lambda path: not path.endswith(".pyc"))
    return {path: entry for path, entry in compiled.items() if path not in base}


def _import_root(path: str) -> str:
    """Return the folder below which a module lies: a lib folder of Python's, whole."""
    return next(root for root in (SITE, f"usr/lib/python{VERSION}", "usr/lib/python3") if path.startswith(f"{root}/"))


@contextmanager
def unpacked(image: Tree, cache: Path) -> Iterator[Path]:
    """Lay an image out on disk for a while."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        tree.write_folder(tree.with_parents(image), Path(scratch))
        yield Path(scratch)


def run(root: Path, arguments: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> str:
    """Run the image's Python through the image's own loader, and return what it prints: no chroot, no privilege."""
    loader = next(iter(sorted(root.glob("usr/lib*/ld-linux-*.so.*"))))
    libraries = ":".join(str(path) for path in (root / "usr/lib").glob("*-linux-gnu"))
    command = [str(loader), "--library-path", libraries, str(root / f"usr/bin/python{VERSION}"), "-S", "-P", "-s"]
    inside = {**environment, "PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0"}
    command += arguments
    done = subprocess.run(command, env=inside, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PythonError(f"{' '.join(arguments[:3])} failed:\n{done.stdout.strip()}\n{done.stderr.strip()}".strip())
    return done.stdout
