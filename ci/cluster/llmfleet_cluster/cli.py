"""The command line of `ci/cluster/cluster`.

In: arguments. Out: answers on stdout, progress on stderr; status 0, 1 for a failure that was explained,
2 for wrong arguments. Decides nothing but which function works.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from . import built, images, outside, status
from .layout import DEFAULT_NAME, MAX_NODES, check_name, node_names
from .shell import ClusterError, say
from .store import Record, folder_of, layout_of, locked, read_record, remember_archive, write_record

DEFAULT_TAIL = 200


def main(argv: Sequence[str]) -> int:
    """Run one command."""
    arguments = parser().parse_args(argv)
    if wrong := check_name(arguments.name):
        parser().error(wrong)
    try:
        action: Callable[[argparse.Namespace], int] = arguments.action
        return action(arguments)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; `up` goes on where it stopped, `down` cleans up")
        return 130


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(prog="cluster", description="A Kubernetes cluster on this machine.")
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    command = add(commands, "up", up, "start the cluster, or repair and complete it")
    command.add_argument(
        "--nodes", type=node_count, metavar="N", help=f"nodes that take pods, 1 to {MAX_NODES}; default 2"
    )
    command.add_argument(
        "--context", default="", metavar="C", help="use this kube context instead of a cluster of ours"
    )
    command.add_argument(
        "--backend", choices=("kind", "built"), help="do not choose; default kind if Docker or Podman answers"
    )
    command.add_argument(
        "--policies", action="store_true", help="make NetworkPolicies count (clusters built on this machine only)"
    )
    add(commands, "down", down, "remove the cluster and everything it left on this machine")
    command = add(commands, "load", load, "load image archives into every node")
    command.add_argument("archives", nargs="+", type=Path, metavar="IMAGE.tar", help="OCI or Docker archive")
    command = add(commands, "status", show, "say what runs; status 0 when all is well, 1 when not")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = add(commands, "logs", logs, "list the components' logs, or print the end of one")
    command.add_argument("component", nargs="?", help="as listed, for example kubelet.node-0")
    command.add_argument(
        "--tail", type=int, default=DEFAULT_TAIL, metavar="LINES", help=f"lines; default {DEFAULT_TAIL}"
    )
    add(commands, "kubeconfig", kubeconfig, "print the path of the kubeconfig")
    for name, action, text in (
        ("node-kill", node_kill, "cut a node's power: all its processes end, its address falls silent"),
        ("node-start", node_start, "give a node its power back and wait until it is Ready"),
    ):
        add(commands, name, action, text).add_argument("node", metavar="NODE", help="for example node-1")
    return result


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    action: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add a command; all of them take the cluster's name."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--name", default=DEFAULT_NAME, help=f"the cluster's name; default {DEFAULT_NAME}")
    command.set_defaults(action=action)
    return command


def node_count(text: str) -> int:
    """Parse --nodes."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1 to {MAX_NODES}")
    return int(text)


def up(arguments: argparse.Namespace) -> int:
    """Start or repair; what the cluster is, is decided once."""
    name: str = arguments.name
    with locked(name):
        record = read_record(name) or new_record(arguments)
        refuse_change(name, record, arguments)
        say(f"{name}: {record.backend}, because {record.why}")
        if record.backend == "built":
            built.up(name, record, arguments.nodes)
        else:
            connect(name, record, arguments.nodes)
    return 0


def new_record(arguments: argparse.Namespace) -> Record:
    """Choose where a new cluster comes from."""
    if arguments.backend == "built" and not arguments.context:
        return Record(backend="built", why="--backend built was given", policies=arguments.policies)
    record = replace(outside.choose(arguments.context), policies=arguments.policies)
    if record.policies and record.backend != "built":
        raise ClusterError(f"--policies is for clusters built here (--backend built), and {record.why}")
    if arguments.backend and arguments.backend != record.backend:
        raise ClusterError(f"--backend {arguments.backend} is not possible: {record.why}")
    return record


def refuse_change(name: str, record: Record, arguments: argparse.Namespace) -> None:
    """A cluster does not become another one while somebody may be using it."""
    other_context = arguments.context and arguments.context != record.context
    if other_context or (arguments.backend and arguments.backend != record.backend):
        raise ClusterError(
            f"{name!r} exists as {record.backend} ({record.why}); run `down` first or use another --name"
        )
    if arguments.policies and not record.policies:
        raise ClusterError(f"{name!r} exists without --policies; run `down` first or use another --name")


def connect(name: str, record: Record, count: int | None) -> None:
    """Bring up what others run: noted once a context has answered, but before kind makes what `down` must find."""
    if record.backend == "context":
        outside.up_context(name, record)
        write_record(name, record)
    else:
        write_record(name, record)
        outside.up_kind(name, record, count)


def down(arguments: argparse.Namespace) -> int:
    """Remove a cluster; removing none is fine, and cleans up what an interrupted command left."""
    name: str = arguments.name
    with locked(name):
        record = read_record(name)
        if record is None or record.backend == "built":
            built.down(name, record)
        else:
            outside.down(name, record)
    say(f"{name}: gone")
    return 0


def existing(name: str) -> Record:
    """Return the record of a cluster that must exist."""
    record = read_record(name)
    if record is None:
        raise ClusterError(f"there is no cluster {name!r}; `cluster up` makes it")
    return record


def load(arguments: argparse.Namespace) -> int:
    """Load archives one after the other."""
    name: str = arguments.name
    with locked(name):
        for archive in [path.absolute() for path in arguments.archives]:
            record = existing(name)
            if not archive.is_file():
                raise ClusterError(f"{archive}: no such file")
            if record.backend == "built":
                images.load(layout_of(name, record), node_names(record.nodes), archive)
                remember_archive(name, record, archive)
            else:
                outside.load(name, record, archive)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print the status."""
    state = status.collect(arguments.name, read_record(arguments.name))
    print(json.dumps(state, indent=1) if arguments.json else "\n".join(status.lines(state)))
    return 0 if state["healthy"] else 1


def logs(arguments: argparse.Namespace) -> int:
    """List logs, or print the end of one."""
    record = existing(arguments.name)
    if record.backend != "built":
        raise ClusterError(f"{arguments.name!r} is {record.backend}: its components log where whoever runs it looks")
    folder = layout_of(arguments.name, record).logs
    known = sorted(path.stem for path in folder.glob("*.log"))
    if arguments.component is None:
        print("\n".join(f"{name:28} {folder}/{name}.log" for name in known))
        return 0
    if arguments.component not in known:
        raise ClusterError(f"no component {arguments.component!r}; there are {', '.join(known)}")
    text = (folder / f"{arguments.component}.log").read_text(errors="replace")
    sys.stdout.write("".join(text.splitlines(keepends=True)[-arguments.tail :]))
    return 0


def kubeconfig(arguments: argparse.Namespace) -> int:
    """Print where the kubeconfig is."""
    existing(arguments.name)
    print(folder_of(arguments.name) / "kubeconfig")
    return 0


def node_kill(arguments: argparse.Namespace) -> int:
    with locked(arguments.name):
        built.kill_node(arguments.name, existing_built(arguments.name), arguments.node)
    return 0


def node_start(arguments: argparse.Namespace) -> int:
    with locked(arguments.name):
        built.start_node(arguments.name, existing_built(arguments.name), arguments.node)
    return 0


def existing_built(name: str) -> Record:
    """Return the record of a cluster whose nodes are ours to break."""
    record = existing(name)
    if record.backend != "built":
        raise ClusterError(f"{name!r} is {record.backend}: its nodes are not ours to switch off")
    return record
