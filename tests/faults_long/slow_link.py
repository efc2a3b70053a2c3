"""A link that takes its time: a TUN device whose packets come back out of it, in order, so many seconds later.

    python slow_link.py DEVICE SECONDS

It runs in the namespace whose packets are to be late, until SIGTERM, and the device goes with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def main(device: str, seconds: float) -> None:
    """Hold every packet for so long."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    held: deque[tuple[float, bytes]] = deque()
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([tun], [], [], wait)
        if readable:
            held.append((time.monotonic() + seconds, os.read(tun, 65536)))
        while held and held[0][0] <= time.monotonic():
            os.write(tun, held.popleft()[1])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
