"""Write the backends file so that a reader sees the old document or the new one, never a part.

In: a path and bytes. Out: the file, durable. It never leaves a temporary file behind for long: the next write takes
the same name.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the file, flush to disk, then rename over it."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_if_there(path: Path) -> bytes | None:
    """What the file holds; None when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
