"""Cut, thin out or slow down what two nodes' pods say to each other.

In: a node's network and the pod ranges of both ends. Out: a context in which packets are lost, refused or late; the
rules stand in a chain of our own in the node's namespace, so that what a killed run left is found by the next one.
The kernel need not have netem: packets are delayed by a small program on a TUN device.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e.bed import eventually, run

CHAIN = "LLMFLEET-FAULT"
TABLE = "77"  # routes that lead past the delay, for packets that come out of it
DEVICE = "slow0"


@contextmanager
def filtered(network: Sequence[str], rules: Sequence[Sequence[str]]) -> Iterator[None]:
    """Have rules in front of everything a node forwards."""
    iptables = [*network, "iptables", "--wait"]
    clear(network)
    try:
        run([*iptables, "-N", CHAIN])
        for rule in rules:
            run([*iptables, "-A", CHAIN, *rule])
        run([*iptables, "-I", "FORWARD", "1", "-j", CHAIN])
        yield
    finally:
        clear(network)


def clear(network: Sequence[str]) -> None:
    """Take our chain away, if it is there."""
    for words in (["-D", "FORWARD", "-j", CHAIN], ["-F", CHAIN], ["-X", CHAIN]):
        subprocess.run([*network, "iptables", "--wait", *words], capture_output=True, check=False)


def dropped(source: str, target: str) -> list[str]:
    """Lose every packet of one direction."""
    return ["-s", source, "-d", target, "-j", "DROP"]


def refused(source: str, target: str) -> list[str]:
    """Answer every TCP packet of one direction with a reset."""
    return ["-s", source, "-d", target, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"]


def thinned(source: str, target: str, share: float) -> list[str]:
    """Lose a share of one direction's packets."""
    chance = ["-m", "statistic", "--mode", "random", "--probability", str(share)]
    return ["-s", source, "-d", target, *chance, "-j", "DROP"]


def has_netem(network: Sequence[str]) -> bool:
    """Whether this kernel can delay packets by itself."""
    added = subprocess.run(
        [*network, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], capture_output=True, check=False
    )
    if added.returncode == 0:
        run([*network, "tc", "qdisc", "del", "dev", "lo", "root"])
    return added.returncode == 0


@contextmanager
def delayed(network: Sequence[str], target: str, seconds: float) -> Iterator[None]:
    """Hold what a node sends to a range of addresses for a while, in order."""
    route = run([*network, "ip", "route", "show", target]).strip()
    program = [sys.executable, str(Path(__file__).with_name("slow_link.py")), DEVICE, str(seconds)]
    running = subprocess.Popen([*network, *program])
    try:
        eventually(lambda: DEVICE in run([*network, "ip", "-brief", "link"]), 20)
        run([*network, "ip", "link", "set", DEVICE, "up"])
        run([*network, "ip", "route", "replace", *route.split(), "table", TABLE])
        run([*network, "ip", "rule", "add", "iif", DEVICE, "lookup", TABLE])
        run([*network, "ip", "route", "replace", target, "dev", DEVICE])
        yield
    finally:
        run([*network, "ip", "route", "replace", *route.split()])
        for words in (["rule", "del", "iif", DEVICE], ["route", "flush", "table", TABLE]):
            subprocess.run([*network, "ip", *words], capture_output=True, check=False)
        running.terminate()
        running.wait()
