"""Trees, Containerfiles, ELF headers and lock files as values: no cache, no network."""

import runpy
from io import BytesIO
from pathlib import Path
from tarfile import DIRTYPE, LNKTYPE, SYMTYPE, TarFile, TarInfo

import pytest
from image_driver import REPOSITORY
from imagebuild import containerfile, debian, elf, recipes, tree

pytestmark = pytest.mark.images


def tar(*members: tuple[str, bytes, int, str, int]) -> bytes:
    """Write a tar of (name, type, mode, link target, size) members; files are zeros."""
    out = BytesIO()
    with TarFile(fileobj=out, mode="w") as archive:
        for name, kind, mode, target, size in members:
            member = TarInfo(name)
            member.type, member.mode, member.linkname, member.size = kind, mode, target, size
            archive.addfile(member, BytesIO(bytes(size)))
    return out.getvalue()


def test_a_tree_survives_the_way_to_a_tar_and_back() -> None:
    first = {
        "bin": tree.link("usr/bin"),
        "home": tree.folder(mode=0o775, uid=2000, gid=7),
        "home/x y": tree.file("ä", mode=0o600, uid=2000),
        "tmp": tree.folder(mode=0o1777),
    }
    out = BytesIO()
    tree.write_tar(first, out)
    assert tree.read_tar(out.getvalue()) == first


def test_reading_a_layer_back_keeps_the_link_that_merges_usr() -> None:
    """Were it moved below /usr as a package's files are, /usr/bin would be a link to itself."""
    out = BytesIO()
    tree.write_tar({"bin": tree.link("usr/bin"), "usr": tree.folder(), "usr/bin": tree.folder()}, out)
    assert tree.read_tar(out.getvalue())["bin"] == tree.link("usr/bin")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("bin/busybox", "usr/bin/busybox"),
        ("lib64/ld.so", "usr/lib64/ld.so"),
        ("lib", "usr/lib"),
        ("usr/lib/x", "usr/lib/x"),
        ("library/x", "library/x"),
    ],
)
def test_a_package_lands_where_the_merged_usr_puts_it(path: str, place: str) -> None:
    assert tree.merged_usr(path) == place


def test_hard_links_become_files_and_set_id_bits_are_dropped() -> None:
    read = tree.read_tar(
        tar(
            ("./usr/", DIRTYPE, 0o755, "", 0),
            ("./usr/su", b"0", 0o4755, "", 3),
            ("./usr/sg", LNKTYPE, 0, "./usr/su", 0),
        )
    )
    assert read["usr/sg"] == read["usr/su"] == tree.file(bytes(3), mode=0o755)


def test_links_keep_their_targets() -> None:
    assert tree.read_tar(tar(("./a", SYMTYPE, 0o777, "../b", 0)))["a"].target == "../b"


def test_dropping_files_drops_folders_that_become_empty_and_no_others() -> None:
    whole = tree.with_parents({"a/b/c": tree.file(""), "a/d": tree.file(""), "empty": tree.folder()})
    assert set(tree.without(whole, lambda path: path == "a/b/c")) == {"a", "a/d", "empty"}


def test_a_tree_is_laid_out_in_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    """A link that sorts first must not be the first thing that needs its parent."""
    target = tmp_path / "new" / "root"
    tree.write_folder({"bin": tree.link("usr/bin"), "usr": tree.folder(), "usr/bin": tree.folder()}, target)
    assert (target / "bin").is_symlink() and (target / "bin").resolve() == target / "usr/bin"


def test_modes_do_not_follow_the_umask_of_whoever_checked_out(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("x")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "run").write_text("x")
    (tmp_path / "run").chmod(0o700)
    read = tree.read_folder(tmp_path)
    assert (read["private"].mode, read["run"].mode) == (0o644, 0o755)


def test_a_changed_mode_or_byte_changes_the_fingerprint() -> None:
    prints = {tree.fingerprint({"a": entry}) for entry in (tree.file("x"), tree.file("y"), tree.file("x", mode=0o755))}
    assert len(prints) == 3


def test_only_the_last_stage_of_a_containerfile_counts() -> None:
    text = (
        'FROM a AS b\nUSER 0\nENV X=1\nFROM scratch\nCOPY --from=b / /\nENV A="1 2" \\\n    B=3\nUSER 5:6\nCMD ["x"]\n'
    )
    assert containerfile.image_config(text) == {"Env": ["A=1 2", "B=3"], "User": "5:6", "Cmd": ["x"]}


def test_an_instruction_this_builder_does_not_know_is_refused() -> None:
    with pytest.raises(containerfile.ContainerfileError, match="HEALTHCHECK"):
        containerfile.image_config("FROM scratch\nHEALTHCHECK NONE\n")


def test_the_libraries_of_this_python_are_read_from_its_elf_header() -> None:
    libc = next(Path("/lib").glob("*-linux-gnu/libm.so.6"))
    assert "libc.so.6" in elf.needed(libc.read_bytes())
    assert elf.needed(b"#!/bin/sh\n") == set()


def test_a_lock_line_is_a_name_and_a_version() -> None:
    text = "# head\nlibbz2-1.0 1.0.8-5 # why\n\nzlib1g 1:1.2\n"
    wanted = [debian.Package(name="libbz2-1.0", version="1.0.8-5"), debian.Package(name="zlib1g", version="1:1.2")]
    assert debian.parse_lock(text) == wanted


def test_renewing_a_lock_touches_the_version_even_where_the_name_contains_it() -> None:
    """`libbz2-1.0 0` once became `libbz2-1.<version> 0`."""
    relocked = runpy.run_path(str(REPOSITORY / "ci/images/build"))["relocked"]
    assert relocked("libbz2-1.0 0\n", {"libbz2-1.0": "1.0.8"}) == "libbz2-1.0 1.0.8\n"
    assert relocked("# a comment\n", {}) == "# a comment\n"


def test_every_image_folder_is_an_image_and_the_other_way_round() -> None:
    folders = {path.parent.name for path in (REPOSITORY / "images").glob("*/Containerfile")}
    assert folders == set(recipes.images("0"))
