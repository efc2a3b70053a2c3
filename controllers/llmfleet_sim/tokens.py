"""A tokenizer without a vocabulary: four bytes of UTF-8 are one token, reversibly.

In: text or token ids. Out: ids or text. Pure. An id is the bytes of its piece behind a leading 1, so
every process gives the same ids, equal prefixes of text give equal prefixes of ids, and any id can be
turned back into text. Ids 1 to 5 are the special tokens a small chat template needs.
"""

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Tokens = array[int]
else:  # array takes no subscript at run time before Python 3.12
    Tokens = array

BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4
PIECE = 4
VOCABULARY = 2 * 256**PIECE
_LEAD = 256**PIECE


def encode(text: str) -> Tokens:
    """Cut the UTF-8 bytes into pieces of four; the last may be shorter."""
    data = text.encode("utf-8", "replace")
    whole, tail = divmod(len(data), PIECE)
    ids = array("Q", [v + _LEAD for v in struct.unpack_from(f">{whole}I", data)])
    if tail:
        ids.append(int.from_bytes(b"\x01" + data[-tail:], "big"))
    return ids


def piece(token: int) -> bytes:
    """Give the bytes of one id; special and unknown ids have none."""
    data = token.to_bytes((token.bit_length() + 7) // 8, "big")
    return data[1:] if data[:1] == b"\x01" and len(data) > 1 else b""


def decode(tokens: Iterable[int]) -> str:
    """Join the pieces; what is not UTF-8 becomes the replacement character."""
    return b"".join(map(piece, tokens)).decode("utf-8", "replace")


def token_text(token: int) -> str:
    """Give the text of one id alone."""
    return piece(token).decode("utf-8", "replace")


def message_text(content: object) -> str:
    """Join the text parts of a chat message's content."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return str(content)


def encode_chat(messages: Iterable[Mapping[str, object]], *, open_answer: bool = True) -> Tokens:
    """Render `<|role|>content` per message and an open assistant turn, each role marker one token."""
    ids = array("Q")
    for message in messages:
        ids.append(ASSISTANT if message.get("role") == "assistant" else USER)
        ids.extend(encode(message_text(message.get("content"))))
    if open_answer:
        ids.append(ASSISTANT)
    return ids


def chat_text(tokens: Iterable[int]) -> str:
    """Show a chat prompt as text, role markers included."""
    names = {USER: "<|user|>", ASSISTANT: "<|assistant|>", BOS: "<s>", EOS: "</s>"}
    return "".join(names.get(t) or token_text(t) for t in tokens)
