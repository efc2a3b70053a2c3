"""The cluster's parts that need neither root nor a cluster: names, addresses, control groups, images, the choice."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from llmfleet_cluster import built, cgroups, cli, images, network, outside, processes, store
from llmfleet_cluster.layout import CONTROL_PLANE, LONGEST_FOLDER, SLOTS, Layout, check_folder, node_names
from llmfleet_cluster.shell import ClusterError

MOUNTS_1 = """\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,memory
"""
MOUNTS_HYBRID = MOUNTS_1 + "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
MOUNTS_2 = "30 20 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def layout(name: str = "local", slot: int = 0) -> Layout:
    return Layout(name=name, slot=slot, folder=Path("/state") / name)


@pytest.mark.parametrize(
    ("case", "mounts", "found"),
    [
        ("version 1 has a tree per controller", MOUNTS_1, [("cpu,cpuacct", 1), ("with space", 1)]),
        ("a hybrid machine has both", MOUNTS_HYBRID, [("cpu,cpuacct", 1), ("with space", 1), ("unified", 2)]),
        ("version 2 has one tree", MOUNTS_2, [("cgroup", 2)]),
        ("a machine without any", "", []),
    ],
)
def test_control_group_trees_are_read_from_the_mount_table(
    case: str, mounts: str, found: list[tuple[str, int]]
) -> None:
    assert [(tree.mount.name, tree.version) for tree in cgroups.parse_mounts(mounts)] == found, case


def test_version_2_groups_get_the_controllers_pods_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for group in (tmp_path, tmp_path / "llmfleet-local", tmp_path / "llmfleet-local/node-0"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma misc\n")
        (group / "cgroup.subtree_control").write_text("memory\n")
    tree = cgroups.Hierarchy(mount=tmp_path, version=2)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tree])
    cgroups.ensure("llmfleet-local/node-0/pods")
    assert (tmp_path / "llmfleet-local/node-0/pods").is_dir()
    for group in (tmp_path, tmp_path / "llmfleet-local", tmp_path / "llmfleet-local/node-0"):
        assert (group / "cgroup.subtree_control").read_text() == "+cpuset +cpu +io +pids"


def test_a_container_that_forbids_controllers_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu")
    (tmp_path / "cgroup.subtree_control").write_text("")

    def busy(path: Path, text: str) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(ClusterError, match=r"cannot enable cpu below .*move them to a child group"):
        cgroups.delegate(tmp_path)


def test_version_1_cpusets_inherit_what_is_empty_and_keep_what_is_set(tmp_path: Path) -> None:
    child = tmp_path / "child"
    child.mkdir()
    for name, content in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (tmp_path / name).write_text(content)
    (child / "cpuset.cpus").write_text("1\n")
    (child / "cpuset.mems").write_text("\n")
    cgroups.inherit_cpuset(tmp_path, child)
    assert ((child / "cpuset.cpus").read_text(), (child / "cpuset.mems").read_text()) == ("1\n", "0\n")


def test_only_a_process_of_the_group_is_killed() -> None:
    assert not cgroups.belongs(os.getpid(), "llmfleet-nobody")
    handle = cgroups.kill_one(os.getpid(), "llmfleet-nobody")
    assert handle is not None
    os.close(handle)


def test_a_process_is_known_by_pid_and_start_together(tmp_path: Path) -> None:
    place = Layout(name="local", slot=0, folder=tmp_path)
    place.records.mkdir()
    me = {"pid": os.getpid(), "start": processes.start_time(os.getpid()), "digest": "d"}
    (place.records / "me.json").write_text(json.dumps(me))
    assert processes.find(place, "me") is not None
    (place.records / "me.json").write_text(json.dumps({**me, "start": "1"}))
    assert processes.find(place, "me") is None, "the number was given to another process since"
    (place.records / "me.json").write_text('{"pid": 1')
    assert processes.find(place, "me") is None, "a torn record is none"
    processes.stop(place, "me")
    assert processes.recorded(place) == []


def test_a_changed_input_makes_another_process(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("a")
    spec = processes.Spec(name="p", argv=("p", "--flag"), cgroup="g", inputs=(config,))
    before = spec.digest()
    assert spec.digest() == before
    config.write_text("b")
    assert spec.digest() != before


def test_every_name_fits_the_kernels_limits() -> None:
    place = layout("a" * 20)
    links = [place.bridge, place.link(CONTROL_PLANE), *(place.link(node) for node in node_names(100))]
    assert max(len(link) for link in links) <= 15
    assert len(set(links)) == len(links)


def test_a_node_keeps_its_hardware_address_and_shares_it_with_nobody() -> None:
    places = [layout("one"), layout("two", slot=1)]
    found = [place.hardware(member) for place in places for member in ("bridge", CONTROL_PLANE, *node_names(100))]
    assert len(set(found)) == len(found)
    assert all(text.startswith("02:") and len(text) == 17 for text in found), "locally administered, to one receiver"
    assert layout("one").hardware("node-0") == layout("one", slot=5).hardware("node-0")


def test_no_two_members_and_no_two_slots_share_an_address() -> None:
    members = [CONTROL_PLANE, *node_names(100)]
    addresses = [layout(slot=slot).address(member) for slot in SLOTS for member in members]
    ranges = [text for slot in SLOTS for text in (layout(slot=slot).pods, layout(slot=slot).services)]
    assert len(set(addresses)) == len(addresses)
    assert len(set(ranges)) == len(ranges)


@pytest.mark.parametrize(
    ("case", "folder", "words"),
    [
        ("the default is fine", "/var/lib/llmfleet/cluster/local", None),
        ("a folder nodes cover", "/run/llmfleet/cluster/local", "nodes cover"),
        ("a kubelet's sockets would not fit", "/" + "x" * LONGEST_FOLDER, "at most 60"),
    ],
)
def test_a_state_folder_nodes_cannot_live_in_is_refused(case: str, folder: str, words: str | None) -> None:
    problem = check_folder(Path(folder))
    assert (problem is None) if words is None else (words in (problem or "")), case


def test_ranges_that_the_machine_uses_are_left_alone() -> None:
    routes = [{"dst": "default"}, {"dst": "10.244.0.0/16"}, {"dst": "10.98.7.1"}, {"dst": "192.168.0.0/24"}]
    assert network.occupied_slots(json.dumps(routes)) == {0, 2}
    assert network.occupied_slots("") == set()


def test_slots_run_out_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMFLEET_STATE", str(tmp_path))
    store.write_record("other", store.Record(backend="built", why="test", nodes=2, slot=0))
    assert store.free_slot("mine", {1}) == 2
    assert store.free_slot("other", set()) == 0, "its own slot is free to itself"
    with pytest.raises(ClusterError, match="down --name"):
        store.free_slot("mine", set(SLOTS))


def test_a_record_survives_being_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMFLEET_STATE", str(tmp_path))
    record = store.Record(backend="built", why="test", nodes=3, slot=4)
    newer = store.remember_archive("mine", store.remember_archive("mine", record, Path("/a.tar")), Path("/a.tar"))
    assert newer.archives == ("/a.tar",)
    assert store.read_record("mine") == newer
    assert store.read_record("absent") is None


def test_an_image_archive_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    binary = tmp_path / "pause"
    binary.write_bytes(b"program")
    first = images.binary_archive("localhost/llmfleet/pause:1", binary, "x86_64")
    assert images.binary_archive("localhost/llmfleet/pause:1", binary, "x86_64") == first
    archive = tmp_path / "pause.tar"
    archive.write_bytes(first)
    (name, digest), *others = images.contents(archive).items()
    assert (name, others) == ("localhost/llmfleet/pause:1", [])
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert f"blobs/sha256/{digest.removeprefix('sha256:')}" in tar.getnames()


def test_a_docker_archive_has_no_digest_to_compare(tmp_path: Path) -> None:
    archive = tmp_path / "docker.tar"
    archive.write_bytes(images.tar_of({"manifest.json": (b"[]", 0o644)}))
    assert images.contents(archive) == {}


def fake(folder: Path, name: str, script: str) -> None:
    """Put a program on a private PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("case", "docker", "podman", "backend"),
    [
        ("a daemon that answers is used", "echo 27.0", "exit 1", "kind"),
        ("a client without a daemon is none", "echo; echo Cannot connect >&2; exit 1", "exit 125", "built"),
        ("a client that prints nothing is none", "exit 0", "exit 1", "built"),
        ("podman will do", "exit 1", "echo 5.0", "kind"),
    ],
)
def test_the_choice_asks_the_daemon(
    case: str, docker: str, podman: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "docker", docker)
    fake(tmp_path / "bin", "podman", podman)
    monkeypatch.setattr(outside, "PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("llmfleet_cluster.shell.PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert outside.choose("").backend == backend, case
    assert outside.choose("mine") == store.Record(backend="context", why="--context mine was given", context="mine")


def test_a_kind_cluster_is_created_loaded_and_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    fake(tmp_path / "bin", "kind", f'echo "$KIND_EXPERIMENTAL_PROVIDER $*" >> "{calls}"')
    monkeypatch.setenv("LLMFLEET_STATE", str(tmp_path))
    monkeypatch.setattr(outside, "tool", lambda name: str(tmp_path / "bin" / name))
    record = store.Record(backend="kind", why="podman answers", context="podman")
    store.write_record("mine", record)
    outside.up_kind("mine", record, 3)
    config = json.loads((store.folder_of("mine") / "kind.json").read_text())
    assert [node["role"] for node in config["nodes"]] == ["control-plane", "worker", "worker", "worker"]
    outside.load("mine", record, Path("/image.tar"))
    outside.down("mine", record)
    done = [" ".join(line.split()[:3]) for line in calls.read_text().splitlines()]
    assert done == [
        "podman get clusters",
        "podman create cluster",
        "podman load image-archive",
        "podman delete cluster",
    ]
    assert not store.folder_of("mine").exists()


def test_only_a_cluster_of_ours_is_asked_to_let_policies_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*words: str) -> store.Record:
        return cli.new_record(cli.parser().parse_args(["up", "--policies", *words]))

    assert asked("--backend", "built").policies
    fake(tmp_path / "bin", "docker", "echo 27.0")
    monkeypatch.setattr(outside, "PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("llmfleet_cluster.shell.PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for words in ([], ["--context", "mine"]):
        with pytest.raises(ClusterError, match="--policies is for clusters built here"):
            asked(*words)


def test_images_are_not_loaded_into_somebody_elses_cluster() -> None:
    record = store.Record(backend="context", why="--context mine was given", context="mine")
    with pytest.raises(ClusterError, match="registry"):
        outside.load("mine", record, Path("/image.tar"))


@pytest.mark.parametrize(
    ("case", "conditions", "since", "good"),
    [
        ("a new node says so", [("Ready", "True", "2026-01-01T00:00:05Z")], "2026-01-01T00:00:05Z", True),
        (
            "what a node said before it was started again",
            [("Ready", "True", "2026-01-01T00:00:04Z")],
            "2026-01-01T00:00:05Z",
            False,
        ),
        ("a node that runs on", [("Ready", "True", "2026-01-01T00:00:04Z")], "", True),
        ("a node that says no", [("Ready", "False", "2026-01-01T00:00:09Z")], "", False),
        ("a node nobody hears", [("Ready", "Unknown", "2026-01-01T00:00:09Z")], "", False),
        ("another condition", [("MemoryPressure", "True", "2026-01-01T00:00:09Z")], "", False),
        ("no word yet", [], "", False),
    ],
)
def test_a_node_is_ready_by_its_own_newest_word(
    case: str, conditions: list[tuple[str, str, str]], since: str, good: bool
) -> None:
    words = [{"type": kind, "status": status, "lastHeartbeatTime": at} for kind, status, at in conditions]
    assert built.ready({"status": {"conditions": words}}, since) is good, case
