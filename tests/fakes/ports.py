"""Ports for processes that are told where to listen, seconds before they do.

In: nothing. Out: numbers that nobody uses now and that nobody is given by chance meanwhile: they lie below those from
which the kernel serves whoever connects or binds port 0, and each worker of a test run takes them, in turn, from a
slice of its own. It holds no socket open.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST, SLICES, SLICE = 11000, 7, 2400  # node ports begin at 30000, the kernel's own choice at 32768
# A few numbers apart: an engine's other ports are those after its first.
STEP = 3


def own_slice() -> range:
    """The numbers of this process, beginning somewhere: runs of the same moment seldom begin at the same one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw")
    begin = FIRST + (int(worker) + 1) % SLICES * SLICE
    return range(begin, begin + SLICE, STEP)


def in_turn(numbers: range, start: int) -> itertools.cycle[int]:
    """All of them again and again, from one of them on."""
    start %= len(numbers)
    return itertools.cycle([*numbers[start:], *numbers[:start]])


_numbers = in_turn(own_slice(), os.getpid() * 37)


def is_free(port: int) -> bool:
    """Whether nobody has it, on any address."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that differ."""
    return list(itertools.islice(filter(is_free, _numbers), count))


def free_port() -> int:
    """One port."""
    return free_ports(1)[0]
