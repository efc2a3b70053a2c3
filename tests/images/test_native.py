"""The router's hot path in the image is machine code of this checkout, and nothing else is.

That it does what its sources do is what `ci/check native` shows: all of tests/router, on the same machine code.
"""

import subprocess
from pathlib import Path

import pytest
from image_driver import REPOSITORY, Container
from imagebuild import debian, native, python, tree

NAMES = native.module_names((REPOSITORY / "images/llmfleet/compiled").read_text())
WHERE = "import importlib, sys; print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')"


@pytest.mark.images
def test_the_image_runs_machine_code_where_the_list_says_so_and_nowhere_else(containers: dict[str, Container]) -> None:
    modules = [f"llmfleet.router.{name.replace('/', '.')}" for name in NAMES]
    done = containers["llmfleet"].run("python3", "-P", "-c", WHERE, *modules)
    assert done.returncode == 0, done.stderr
    assert len(NAMES) > 20 and all(path.endswith(".so") for path in done.stdout.splitlines())
    ours = [path for path in containers["llmfleet"].tree if path.startswith(f"{python.SITE}/llmfleet")]
    assert len([path for path in ours if path.endswith(".so")]) == len(NAMES) + 1, "the modules, and what they share"


@pytest.mark.images
def test_a_developer_gets_the_same_machine_code_as_the_image_and_a_second_time_at_once(
    containers: dict[str, Container],
) -> None:
    command = [REPOSITORY / "ci/images/native"]
    folder = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (Path(again.stdout.strip()), again.stderr) == (folder, "")
    image = containers["llmfleet"].tree
    for path in folder.rglob("*.so"):
        assert path.read_bytes() == image[f"{python.SITE}/{path.relative_to(folder)}"].data, path


def test_every_named_module_exists_and_is_named_once() -> None:
    folder = REPOSITORY / "controllers/llmfleet/router"
    assert [name for name in NAMES if not (folder / f"{name}.py").exists()] == []
    assert sorted(set(NAMES)) == NAMES


def test_a_list_of_modules_may_have_comments() -> None:
    assert native.module_names("# why\nrelay\n\nclients/proxy  # all\n") == ["relay", "clients/proxy"]


def test_only_what_the_compiler_sees_decides_the_machine_code() -> None:
    files = {
        f"{python.SITE}/llmfleet/{name}": tree.file(b"")
        for name in ("__init__.py", "router/relay.py", "router/words.txt", "api/document.py", "deploy/decide.py")
    }
    assert set(native.seen(files)) == {"llmfleet/__init__.py", "llmfleet/router/relay.py", "llmfleet/api/document.py"}


def test_a_library_of_mypyc_that_has_changed_is_refused_and_not_passed_by() -> None:
    assert "endn > startn" in native.mended(f"before\n{native.SLICE[0]}\nafter")
    with pytest.raises(native.CompileError, match="SLICE"):
        native.mended("Py_ssize_t slice_len = max(endn - startn, 0);")


def test_the_compiler_of_another_architecture_has_its_name() -> None:
    lock = [debian.Package(name="binutils-x86-64-linux-gnu", version="1"), debian.Package(name="gcc-12", version="2")]
    assert [package.name for package in debian.of_architecture(lock, "arm64")] == [
        "binutils-aarch64-linux-gnu",
        "gcc-12",
    ]
    assert debian.of_architecture(lock, "amd64") == lock
