"""Deterministic answers: the n-th token follows from a seed and n alone.

In: a seed (made from the prompt) and a position. Out: a token. Pure. Every word is a space and three
letters, so it is exactly one token of `tokens.py`, and a chat history tokenizes to the blocks that
its generation filled: prefix caching works across turns as with a real model.
"""

import json
from zlib import crc32

from llmfleet_sim.tokens import Tokens, encode

_WORDS = (
    "the fox ran far and saw one red sun set low but not yet dim she met her old dog who had got two new "
    "hay cap for any fog day our cat sat all his own way out was ice sea air sky oak elm bay cow hen pig "
    "bee ant owl bat rat ram ewe elk cod eel jay joy toy boy man men arm leg eye ear lip toe jaw rib hip "
    "map car bus van jet cab log cup jar pan pot lid box bag bed rug mat hat tie pin pen ink key toy bow "
    "ask say see let put run sit try use win may can now how why too off per via ago six ten big fit hot "
    "icy odd raw shy sly wet wry"
)
WORDS = tuple(dict.fromkeys(_WORDS.split()))
TOKENS = tuple(encode(" " + word)[0] for word in WORDS)
TEXTS = tuple(" " + word for word in WORDS)
JSON_TEXTS = tuple(json.dumps(text)[1:-1].encode() for text in TEXTS)
_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """Spread 64 bits (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def prompt_seed(prompt: Tokens, *, seed: int = 0, choice: int = 0) -> int:
    """Make the seed of one choice of one prompt."""
    return mix(crc32(prompt.tobytes()) ^ (seed << 32) ^ (choice << 48))


def word_at(seed: int, position: int) -> int:
    """Give the index of the word at a position."""
    return mix(seed ^ (position * 0xD1342543DE82EF95)) % len(WORDS)


def natural_length(seed: int, mean: int) -> int:
    """Give the length at which this answer would end by itself: between half and one and a half means."""
    return max(1, mean // 2 + mix(seed ^ 0x5EED) % max(1, mean))


def logprob_at(seed: int, position: int, rank: int = 0) -> float:
    """Give a plausible, repeatable log probability."""
    return -(1 + mix(seed ^ position ^ (rank << 40)) % 5_000_000 / 1_000_000 + rank)
