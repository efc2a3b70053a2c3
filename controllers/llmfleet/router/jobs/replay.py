"""A stored stream, told again from any event.

In: the bytes of a finished stream. Out: the same events with ids 1, 2, ..., from the one after those a client has.
An event's own lines are not touched; comments, which are no events, are left out. It never parses what events hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def events(stream: bytes) -> Iterator[bytes]:
    """Yield each event without the blank line that ends it."""
    for block in _END.split(stream):
        if any(line and not line.startswith(b":") for line in block.splitlines()):
            yield block


def replay(stream: bytes, after: int) -> bytes:
    """Return the events after the first `after`, each under its number."""
    numbered = enumerate(events(stream), 1)
    return b"".join(b"id: %d\n%b\n\n" % (number, event) for number, event in numbered if number > after)
