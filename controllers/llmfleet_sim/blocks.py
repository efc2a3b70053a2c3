"""KV blocks with prefix caching, counted as vLLM counts them, without a tensor.

In: token ids and how far they are computed. Out: whether the blocks fit, and what was cached. Pure.
A full block is named by a hash chained from its predecessor. Blocks of finished requests stay cached
until the space is needed (least recently used first) and count as free, as in vLLM's usage gauge.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from llmfleet_sim.tokens import Tokens


@dataclass(slots=True, kw_only=True)
class Holding:
    """The blocks of one sequence: shared ones by hash, the rest by count."""

    shared: list[int] = field(default_factory=list)
    private: int = 0
    hashed: int = 0
    chain: int = 0

    @property
    def blocks(self) -> int:
        """How many blocks are held."""
        return len(self.shared) + self.private


class BlockPool:
    """All KV blocks of an engine."""

    def __init__(self, *, blocks: int, block_size: int, caching: bool) -> None:
        self.total = blocks
        self.block_size = block_size
        self.caching = caching
        self._held: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def used(self) -> int:
        """Blocks that a request or an unpulled transfer holds."""
        return len(self._held) + self._private

    @property
    def usage(self) -> float:
        """Fraction in use; one block is vLLM's null block."""
        return self.used / max(1, self.total - 1)

    @property
    def free(self) -> int:
        """Blocks that could be given out, cached ones included."""
        return self.total - 1 - self.used

    def needed(self, tokens: int) -> int:
        """Blocks for this many tokens."""
        return -(-tokens // self.block_size)

    def match(self, tokens: Tokens, salt: int) -> list[int]:
        """Find the cached blocks of a prompt; its last token is always computed anew."""
        found: list[int] = []
        if not self.caching:
            return found
        chain = salt
        for index in range((len(tokens) - 1) // self.block_size):
            chain = self._hash(chain, tokens, index)
            if chain not in self._held and chain not in self._idle:
                break
            found.append(chain)
        return found

    def adopt(self, holding: Holding, found: list[int], salt: int) -> None:
        """Let a new sequence share cached blocks."""
        for name in found:
            self._idle.pop(name, None)
            self._held[name] = self._held.get(name, 0) + 1
        holding.shared.extend(found)
        holding.hashed = len(found)
        holding.chain = found[-1] if found else salt

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Take the blocks that this many tokens need, or nothing and say no."""
        missing = self.needed(tokens) - holding.blocks
        if missing <= 0:
            return True
        if missing > self.free:
            return False
        self._private += missing
        holding.private += missing
        self._evict()
        return True

    def name_full(self, holding: Holding, tokens: Tokens, computed: int) -> None:
        """Publish the full blocks of a sequence to the prefix cache."""
        if not self.caching:
            return
        while (holding.hashed + 1) * self.block_size <= computed and holding.private:
            name = self._hash(holding.chain, tokens, holding.hashed)
            holding.chain = name
            holding.hashed += 1
            if name not in self._held:
                self._idle.pop(name, None)
                self._held[name] = 1
                holding.shared.append(name)
                holding.private -= 1
                self._private -= 1

    def release(self, holding: Holding) -> None:
        """Give everything back; named blocks stay cached, the tail of a sequence is evicted first."""
        for name in reversed(holding.shared):
            left = self._held[name] - 1
            if left:
                self._held[name] = left
            else:
                del self._held[name]
                self._idle[name] = None
        self._private -= holding.private
        holding.shared.clear()
        holding.private = holding.hashed = holding.chain = 0

    def reset(self) -> None:
        """Forget every cached block that nobody holds."""
        self._idle.clear()

    def _evict(self) -> None:
        """Drop the least recently used cached blocks that no longer fit."""
        while self._idle and self.used + len(self._idle) > self.total - 1:
            self._idle.popitem(last=False)

    def _hash(self, chain: int, tokens: Tokens, index: int) -> int:
        start = index * self.block_size
        return hash((chain, tokens[start : start + self.block_size].tobytes()))
