"""Eight thousand bodies, always the same, few of them requests: each is admitted or refused by name, none crashes."""

import json
import os
import tracemalloc
from random import Random

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from llmfleet.router import body, errors, policy
from llmfleet.router.errors import Refusal
from llmfleet.router.limits import Settings

TIMES = int(os.environ.get("LLMFLEET_TEST_FUZZ", "1"))
RULES = Settings()
OURS = b',"cache_salt":"c0ffee"'
NAMES = [*sorted(body.ALLOWED_FIELDS | body.OWNED_FIELDS | body.REFUSED_FIELDS), "x", "é", "", "\x00", "a" * 300]
INNER = ["type", "content", "image_url", "url", "include_usage", "role", "uuid", "source", "prompt_embeds"]
LEAVES = [None, True, False, 0, -1, 1, 2**70, -(2**70), 1.5, 1e300, float("nan"), float("inf"), "", "m", "true"]
LEAVES += ["1_0", " 2 ", "9" * 400, "data:x", "http://a", "text", "image_url", "\ud800", [], {}, [[]], [1, 2], "9e9"]
JUNK = [b"", b"{", b"}", b"[", b",", b'"', b"\\", b"\xff", b"\x00", b"NaN", b"[" * 2000, b"{}" * 20, b"\xef\xbb\xbf"]


def value(random, depth):
    """A JSON value, rarely deep."""
    kind = random.random()
    if depth == 0 or kind < 0.6:
        return random.choice(LEAVES)
    size = random.randint(0, 4)
    if kind < 0.8:
        return [value(random, depth - 1) for _ in range(size)]
    return {random.choice(INNER): value(random, depth - 1) for _ in range(size)}


def spelt(random, name):
    if random.random() < 0.2:
        return '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'
    return json.dumps(name)


def document(random):
    """A body: keys may come twice and with their letters escaped, and bytes be broken."""
    names = [random.choice(NAMES) for _ in range(random.randint(0, 6))]
    inner = [f"{spelt(random, name)}:{json.dumps(value(random, 3))}" for name in [*names, "messages"]]
    if random.random() < 0.8:
        inner.insert(random.randint(0, len(inner)), '"model":"m"')
    raw = ("{" + ",".join(inner) + "}").encode()
    if random.random() < 0.25:
        at = random.randint(0, len(raw))
        raw = raw[:at] + random.choice(JUNK) + raw[at + random.randint(0, 3) :]
    return raw


def judge(raw):
    """Admit a body on every route; what is admitted must be read alike by the engine's parser."""
    taken = False
    for route in policy.ENGINE_ROUTES.values():
        try:
            admitted = policy.admit(route, raw, RULES, OURS)
        except Refusal as refusal:
            assert refusal.status in (400, 413)
            assert len(errors.render(refusal, route.dialect)[2]) < 2000, "no echo of what was sent"
            continue
        taken = True
        document = json.loads(admitted.body)
        assert document["model"] == admitted.model and document["cache_salt"] == "c0ffee"
        assert document.keys() <= body.ALLOWED_FIELDS | {"cache_salt"}
        assert admitted.streams is (document.get("stream") is True and route.streams)
        assert 1 <= admitted.choices <= RULES.limits.max_prompts
    return taken


LOT = 40


def test_no_body_is_anything_but_admitted_or_refused():
    """Hypothesis draws seeds, and so finds the smallest that fails; drawing every byte would take it minutes."""
    seen = []

    @seed(20261121)
    @settings(max_examples=8000 // LOT * TIMES, deadline=None, database=None)
    @given(start=st.integers(0, 2**64))
    def run(start):
        random = Random(start)
        for _ in range(LOT):
            seen.append(judge(document(random)))

    run()
    assert len(seen) >= 8000 * TIMES
    assert 0.2 < sum(seen) / len(seen) < 0.8, "both kinds are tried"


def test_refusing_keeps_nothing():
    raw = b'{"model":"m","messages":[' + b'{"role":"user","content":"x"},' * 2000 + b'{}],"n":99}'
    for _ in range(5):
        judge(raw)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            judge(raw)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
