"""Turn the router's hot path into machine code: Python extension modules that lie beside their sources.

In: the package `llmfleet`, the names of the modules, mypyc from hash-locked wheels, Debian's C compiler, the image's
Python. Out: a tree with one extension module for each, and the library that they share. mypyc runs in the image's own
Python and sees nothing but our code, and the compiler is a locked one: the same sources give the same bytes on any
machine. Nothing is linked, as a process that imports a module has Python and the C library.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebuild import python, tree
from imagebuild.tree import Entry, Tree

UNWANTED = re.compile(r"bin/")  # of mypyc's wheels: its library is C
SHARED = "llmfleet_router"  # the library is called that and `__mypyc`
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
# All of ours that mypyc sees: the modules, and what they import. Anything else is of a type it does not know.
SEEN = ("llmfleet/__init__.py", "llmfleet/names.py", "llmfleet/telemetry.py", "llmfleet/api/", "llmfleet/router/")
# An answer is sliced with whatever `find` returned. Python's slice from 5 to 3 is empty; mypyc's was an error.
SLICE = ("Py_ssize_t slice_len = endn - startn;", "Py_ssize_t slice_len = endn > startn ? endn - startn : 0;")
GENERATE = """
import shutil, sys
from pathlib import Path
import mypyc
from mypyc.build import mypycify
library = Path(mypyc.__file__).parent / "lib-rt"
shutil.copytree(library, "library")
Path("mypy.ini").write_text("[mypy]\\nignore_missing_imports = True\\nno_site_packages = True\\n")
options = dict(opt_level="2", debug_level="0", target_dir="generated", group_name=sys.argv[1], verbose=False)
for module in mypycify(["--config-file=mypy.ini", *sys.argv[2:]], **options):
    print(module.name, *module.sources)
"""
CODE = ("-O3", "-fPIC", "-fwrapv", "-fvisibility=hidden", "-fno-semantic-interposition", "-DNDEBUG", "-w")
FLAGS = (*CODE, "-shared", "-nostdlib", "-Ilibrary", "-Igenerated")


class CompileError(python.PythonError):
    """A message for the person at the terminal."""


def module_names(text: str) -> list[str]:
    """Read the list of modules; `#` starts a comment."""
    names = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [name for name in names if name]


def seen(package: Mapping[str, Entry]) -> Tree:
    """Return what decides the machine code, of a tree that holds the package below python.SITE."""
    inside = {path.removeprefix(f"{python.SITE}/"): entry for path, entry in package.items()}
    return {path: entry for path, entry in inside.items() if path.startswith(SEEN) and path.endswith(".py")}


def modules(
    sources: Tree, names: Sequence[str], base: Tree, mypyc: Tree, compiler: Tree, *, architecture: str, cache: Path
) -> Tree:
    """Compile the named modules of `sources`, which is what `seen` returned."""
    with python.unpacked(base | mypyc, cache) as root, python.unpacked(compiler, cache) as tools:
        work = root / "work"
        tree.write_folder(tree.with_parents(sources), work)
        _generate(root, work, names)
        gcc = Compiler(tools, work, TRIPLETS[architecture])
        made = [line.split() for line in (work / "extensions").read_text().splitlines()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = dict(pool.map(lambda line: gcc.compile(line[0], line[1:]), made))
    return tree.below(python.SITE, files)


def _generate(root: Path, work: Path, names: Sequence[str]) -> None:
    """Let mypyc write C."""
    paths = [f"llmfleet/router/{name}.py" for name in names]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(root / python.SITE)}
    said = python.run(root, ["-c", GENERATE, SHARED, *paths], environment, folder=work)
    (work / "extensions").write_text("".join(f"{line}\n" for line in said.splitlines() if line.endswith(".c")))
    library = work / "library/bytes_ops.c"
    library.write_text(mended(library.read_text()))


def mended(library: str) -> str:
    """Mend mypyc's slices of bytes; a library that has changed is not passed by."""
    if library.count(SLICE[0]) != 1:
        raise CompileError("mypyc's bytes_ops.c is not the one that imagebuild/native.py mends: look at SLICE there")
    return library.replace(*SLICE)


class Compiler:
    """Debian's gcc, where it was laid out; it finds its parts from where it is."""

    def __init__(self, tools: Path, work: Path, triplet: str) -> None:
        self._tools, self._work, self._triplet = tools, work, triplet
        libraries = tools / "usr/lib" / triplet
        self._environment = {"PATH": f"{tools}/usr/bin", "LD_LIBRARY_PATH": str(libraries), "TMPDIR": str(work)}

    def compile(self, name: str, sources: Sequence[str]) -> tuple[str, Entry]:
        """Make one extension module; returns where it lies below the packages, and its bytes."""
        version = python.VERSION.replace(".", "")
        path = f"{name.replace('.', '/')}.cpython-{version}-{self._triplet}.so"
        made = self._work / f"{name}.so"
        gcc = [str(self._tools / f"usr/bin/{self._triplet}-gcc-12"), f"--sysroot={self._tools}", *FLAGS]
        command = [*gcc, f"-I{self._tools}/usr/include/python{python.VERSION}", *sources, "-o", str(made)]
        done = subprocess.run(command, cwd=self._work, env=self._environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"compiling {name} failed:\n{done.stderr.strip()[-3000:]}")
        return path, tree.file(made.read_bytes(), mode=0o644)
