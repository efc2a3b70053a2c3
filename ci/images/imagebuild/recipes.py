"""What each image consists of: one function per layer, one list of layers per image.

In: a checkout, a store, an archive of Debian packages. Out: OCI archives and unpacked trees. Layers
shared by several images are the same bytes, so a node stores them once.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuild import containerfile, debian, native, oci, python, root, store, tree
from imagebuild.tree import Tree

NAMESPACE = "localhost/llmfleet"
# The modules whose code decides what is in an image; a change elsewhere rebuilds nothing.
DECIDING = ("debian.py", "elf.py", "native.py", "oci.py", "python.py", "recipes.py", "root.py", "tree.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of this project: its name in a registry, its tag, its layers from the bottom up."""

    repository: str
    tag: str
    layers: tuple[str, ...]

    @property
    def reference(self) -> str:
        return f"{NAMESPACE}/{self.repository}:{self.tag}"


def images(version: str) -> Mapping[str, Image]:
    """Return every image by the name of its folder below images/."""
    base = ("base", "wheels")
    return {
        "llmfleet": Image(repository="llmfleet", tag=version, layers=(*base, "native", "llmfleet")),
        "sim": Image(repository="engine-sim", tag=version, layers=(*base, "sim")),
        "redis": Image(repository="redis", tag="7.0", layers=("redis",)),
        "vllm-cpu": Image(repository="vllm-cpu", tag="0.32.0", layers=("base", "vllm-cpu")),
    }


class Checkout:
    """Read-only view of the files an image is made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]

    @property
    def version(self) -> str:
        return str(self.project["version"])

    def packages(self, name: str) -> list[debian.Package]:
        """Return the Debian packages of images/NAME."""
        return debian.parse_lock((self.folder / "images" / name / "packages").read_text())

    def scripts(self, *names: str) -> dict[str, str]:
        """Return the targets of console scripts as pyproject.toml names them."""
        return {name: str(self.project["scripts"][name]) for name in names}

    @property
    def requirements(self) -> Path:
        return self.folder / "requirements/runtime.txt"

    @property
    def mypyc(self) -> Path:
        """What compiles Python modules to C."""
        return self.folder / "requirements/native.txt"

    @property
    def compiled(self) -> list[str]:
        """Return the names of the router's modules that are held as machine code."""
        return native.module_names((self.folder / "images/llmfleet/compiled").read_text())


class Kitchen:
    """Makes layers; each `_NAME` method pairs the key of a layer with the way to make it."""

    def __init__(self, checkout: Checkout, kept: store.Store, packages: debian.Archive) -> None:
        self._checkout = checkout
        self._store = kept
        self._packages = packages
        self._architecture = debian.architecture()
        code = Path(__file__).parent
        self._builder = store.key(*((code / name).read_bytes() for name in DECIDING))
        self._made: dict[str, oci.Layer] = {}

    def archive(self, name: str, image: Image) -> Path:
        """Return the OCI archive of an image."""
        layers = [self.layer(part) for part in image.layers]
        config = self._config(name)
        key = store.key(self._builder, image, config, [layer.digest for layer in layers])
        return self._store.archive(
            name,
            key,
            lambda path: oci.write_archive(
                path, reference=image.reference, architecture=self._architecture, config=config, layers=layers
            ),
        )

    def unpacked(self, image: Image) -> Tree:
        """Return the file system a container of this image starts with."""
        merged: Tree = {}
        for part in image.layers:
            merged |= store.unpack(self.layer(part))
        return merged

    def layer(self, name: str) -> oci.Layer:
        """Return one layer, from the cache where nothing it depends on has changed."""
        if name not in self._made:
            inputs, make = self._plan(name)
            key = store.key(self._builder, self._architecture, name, inputs)
            self._made[name] = self._store.layer(name, key, lambda: tree.with_parents(make()))
        return self._made[name]

    def _plan(self, name: str) -> tuple[object, Callable[[], Tree]]:
        match name:
            case "base":
                return self._checkout.packages("base"), self._base
            case "wheels":
                return (self.layer("base").digest, self._checkout.requirements.read_bytes()), self._wheels
            case "native":
                return self._native()
            case "llmfleet":
                return self._app("llmfleet", self._checkout.scripts("llmfleet"))
            case "sim":
                # Engines are started as `vllm serve ...`; the simulator answers to that name too.
                script = self._checkout.scripts("llmfleet-sim")
                return self._app("llmfleet_sim", script | {"vllm": script["llmfleet-sim"]})
            case "redis":
                return self._checkout.packages("redis"), self._redis
            case "vllm-cpu":
                return self._vllm_cpu()
        raise KeyError(name)

    def _config(self, name: str) -> dict[str, object]:
        text = (self._checkout.folder / "images" / name / "Containerfile").read_text()
        return containerfile.image_config(text)

    def _debian(self, packages: Sequence[debian.Package]) -> Tree:
        unpacked = debian.file_system(self._packages.fetch(packages))
        return unpacked | root.standard() | root.loader_link(unpacked)

    def _base(self) -> Tree:
        """Python 3.11 with its standard library compiled, certificates, a shell."""
        packages = self._debian(self._checkout.packages("base"))
        whole = debian.without_orphans(packages) | root.applets() | root.python_link(python.VERSION)
        modules = {path: whole[path] for path in whole if path.startswith("usr/lib/python3") and path.endswith(".py")}
        return whole | python.byte_code(modules, whole, cache=self._store.folder)

    def _wheels(self) -> Tree:
        base = store.unpack(self.layer("base"))
        installed = self._installed(self._checkout.requirements, base, python.UNWANTED)
        return installed | self._compiled(installed)

    def _installed(self, lock: Path, base: Tree, unwanted: re.Pattern[str]) -> Tree:
        """Install the wheels of a lock."""
        pip = debian.file_system(self._packages.fetch(self._checkout.packages("base/pip")))
        return python.requirements(lock, base, pip, cache=self._store.folder, unwanted=unwanted)

    def _native(self) -> tuple[object, Callable[[], Tree]]:
        """The router's hot path as machine code: extension modules that lie beside their sources."""
        sources = native.seen(python.package(self._checkout.folder / "controllers/llmfleet"))
        lock, names = self._checkout.mypyc, self._checkout.compiled
        compiler = self._checkout.packages("llmfleet/compiler")
        key = (self.layer("base").digest, lock.read_bytes(), names, compiler, tree.fingerprint(sources))
        return key, lambda: self._machine_code(sources, names, compiler)

    def _machine_code(self, sources: Tree, names: Sequence[str], compiler: Sequence[debian.Package]) -> Tree:
        base = store.unpack(self.layer("base"))
        return native.modules(
            sources,
            names,
            base,
            self._installed(self._checkout.mypyc, base, native.UNWANTED),
            debian.file_system(self._packages.fetch(debian.of_architecture(compiler, self._architecture))),
            architecture=self._architecture,
            cache=self._store.folder,
        )

    def _app(self, package: str, scripts: Mapping[str, str]) -> tuple[object, Callable[[], Tree]]:
        """Our own code: the layer that changes with every commit, and the smallest."""
        source = python.package(self._checkout.folder / "controllers" / package)
        named = python.metadata("llmfleet", self._checkout.version, scripts) | python.scripts(scripts)
        key = (self.layer("base").digest, tree.fingerprint(source | named))
        return key, lambda: source | named | self._compiled(source)

    def _compiled(self, sources: Tree) -> Tree:
        return python.byte_code(sources, store.unpack(self.layer("base")), cache=self._store.folder)

    def _redis(self) -> Tree:
        return self._debian(self._checkout.packages("redis")) | root.applets() | root.redis_data()

    def _vllm_cpu(self) -> tuple[object, Callable[[], Tree]]:
        """What vLLM's CPU backend needs of a machine; vLLM itself is mounted (images/vllm-cpu/README.md)."""
        packages = self._checkout.packages("vllm-cpu")
        launcher = tree.read_folder(self._checkout.folder / "images/vllm-cpu/files")
        return (packages, tree.fingerprint(launcher)), lambda: self._machine(packages) | launcher | root.vllm_links()

    def _machine(self, packages: Sequence[debian.Package]) -> Tree:
        """Take libraries and lscpu; the rest of util-linux is for machines that boot."""
        unpacked = debian.file_system(self._packages.fetch(packages))
        tools = [path for path in unpacked if re.match(r"usr/s?bin/(?!lscpu$)|etc/|usr/share/(?!doc/)", path)]
        return tree.without(unpacked, lambda path: path in tools)
