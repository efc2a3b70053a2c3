"""Real connections between networks of pods: from inside one, to a port of another.

In: files that hold network namespaces, and who shall reach what. Out: what came of each try. A thread that went into a
network to make sockets there ends at once; the sockets stay where they were made. Needs root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Made = TypeVar("Made")
CLONE_NEWNET = 0x40000000
# Long after any answer: what says nothing by then is a finding of its own, and neither open nor rejected.
SILENCE_SECONDS = 120.0
ASK_AGAIN_SECONDS = 1.0
OPEN, REJECTED, SILENT = "open", "rejected", "silent"
# What a packet filter's `admin-prohibited` becomes.
PROHIBITED = errno.EHOSTUNREACH
# A question for the address of a name that every cluster has.
QUESTION = (
    b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"
)


@dataclass(frozen=True, slots=True)
class Try:
    """One connection to make: from a network, to an address and port, by TCP or as a question to a resolver by UDP."""

    network: int
    address: str
    port: int
    protocol: str = "TCP"


def within(network: int, make: Callable[[], Made]) -> Made:
    """Do something in another network: what it makes there stays there."""

    def enter() -> Made:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(network, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return make()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(enter).result()


def listen(network: int, address: str, port: int) -> socket.socket | None:
    """Listen in a network; None where a program of the pod already does."""

    def bind() -> socket.socket | None:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((address, port))
        except OSError as error:
            found.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        found.listen(4096)
        found.setblocking(False)
        return found

    return within(network, bind)


def drain(listener: socket.socket) -> None:
    """Take and close what has connected."""
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return


@contextmanager
def many_files() -> Iterator[None]:
    """As many descriptors as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def outcomes(tries: Sequence[Try]) -> list[str]:
    """Make all connections at once; for each one `open`, `rejected`, `silent` or the name of another error."""
    with many_files():
        sockets = made(tries)
        try:
            return settled(tries, sockets)
        finally:
            for one in sockets:
                one.close()


def made(tries: Sequence[Try]) -> list[socket.socket]:
    """A socket for each try, in its network."""
    by_network: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(tries):
        by_network[one.network].append(number)
    found: dict[int, socket.socket] = {}
    for network, numbers in by_network.items():
        kinds = [socket.SOCK_DGRAM if tries[number].protocol == "UDP" else socket.SOCK_STREAM for number in numbers]
        sockets = within(network, lambda kinds=kinds: [socket.socket(type=kind) for kind in kinds])
        found.update(zip(numbers, sockets, strict=True))
    return [found[number] for number in range(len(tries))]


def settled(tries: Sequence[Try], sockets: Sequence[socket.socket]) -> list[str]:
    """Begin every connection, and wait until each is open or has failed."""
    found = [begin(one, sock) for one, sock in zip(tries, sockets, strict=True)]
    poll, numbers = select.poll(), {sock.fileno(): number for number, sock in enumerate(sockets)}
    waiting = {sock.fileno() for number, sock in enumerate(sockets) if not found[number]}
    for descriptor in waiting:
        tcp = tries[numbers[descriptor]].protocol == "TCP"
        poll.register(descriptor, select.POLLOUT if tcp else select.POLLIN)
    deadline = time.monotonic() + SILENCE_SECONDS
    while waiting and time.monotonic() < deadline:
        ready = poll.poll(ASK_AGAIN_SECONDS * 1000)
        for descriptor, _ in ready:
            number = numbers[descriptor]
            found[number] = word(sockets[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            poll.unregister(descriptor)
            waiting.discard(descriptor)
        if not ready:
            ask_again([sockets[numbers[descriptor]] for descriptor in waiting])
    return [outcome or SILENT for outcome in found]


def begin(one: Try, sock: socket.socket) -> str:
    """Start to connect, or ask; what is known at once."""
    sock.setblocking(False)
    code = sock.connect_ex((one.address, one.port))
    if one.protocol == "UDP" and code == 0:
        sock.send(QUESTION)
        return ""
    return "" if code in (0, errno.EINPROGRESS) else word(code)


def ask_again(sockets: Sequence[socket.socket]) -> None:
    """Datagrams get lost, and nobody repeats them but who sent them."""
    for sock in sockets:
        if sock.type == socket.SOCK_DGRAM:
            sock.send(QUESTION)


def word(code: int) -> str:
    """Name what came of a try."""
    if code == 0:
        return OPEN
    return REJECTED if code == PROHIBITED else errno.errorcode.get(code, str(code))
