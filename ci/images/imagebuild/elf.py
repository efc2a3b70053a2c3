"""Which libraries does an ELF file ask the loader for?

In: the bytes of a 64-bit little-endian ELF file. Out: the names in its DT_NEEDED entries. Reads
only what is needed for that, so that the builder does without binutils.
"""

import struct
from collections.abc import Iterator

MAGIC = b"\x7fELF\x02\x01"
LOAD, DYNAMIC = 1, 2
END, NEEDED, STRING_TABLE = 0, 1, 5


def is_elf(data: bytes) -> bool:
    """Tell whether these bytes are a file this module can read."""
    return data.startswith(MAGIC)


def needed(data: bytes) -> set[str]:
    """Return the DT_NEEDED names; none for a static or foreign file."""
    if not is_elf(data):
        return set()
    segments = list(_segments(data))
    dynamic = [pair for kind, offset, _, size in segments if kind == DYNAMIC for pair in _pairs(data, offset, size)]
    tables = [_file_offset(segments, value) for tag, value in dynamic if tag == STRING_TABLE]
    return {_text(data, tables[0] + value) for tag, value in dynamic if tag == NEEDED}


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield kind, file offset, address and file size of each program header."""
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + index * size)
        yield kind, offset, address, length


def _pairs(data: bytes, offset: int, size: int) -> Iterator[tuple[int, int]]:
    for tag, value in struct.iter_unpack("<QQ", data[offset : offset + size]):
        if tag == END:
            return
        yield tag, value


def _file_offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    """Translate an address to a place in the file."""
    return next(
        offset + address - start
        for kind, offset, start, size in segments
        if kind == LOAD and start <= address < start + size
    )


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
