"""API keys: found by hash alone, refused without a hint, and never anywhere in the clear."""

import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router import errors, keys
from llmfleet.router.errors import Refusal
from llmfleet.router.keys import KeysError, parse_keys
from llmfleet.router.limits import DEFAULT_CLASS, Settings
from llmfleet.router.sse import Dialect

CLASSES = Settings().classes
OLD, NEW, OTHER = (keys.hashed(key) for key in ("sk-old", "sk-new", "sk-other"))


def ring(**tenants):
    return parse_keys({"tenants": tenants}, CLASSES, DEFAULT_CLASS)


RING = ring(
    a={"keys": [OLD, "sha256:" + NEW], "models": ["m", "x/y"], "rpm": 60, "class": "high", "weight": 2.5},
    b={"keys": [OTHER], "class": "low", "queueShare": 0.25, "concurrency": 3, "tokensPerMinute": 1000},
)


def test_both_live_keys_of_a_tenant_find_it_and_nothing_else_does():
    assert RING.find((b"Bearer sk-old",)).name == RING.find((b"Bearer sk-new",)).name == "a"
    assert RING.find((b"Bearer sk-other",)).name == "b"
    for wrong in (b"", b"sk-ol", b"SK-OLD", b"\xff", b"x" * 100_000, OLD.encode(), b"sk-old\nsk-new"):
        with pytest.raises(Refusal) as refusal:
            RING.find((b"Bearer " + wrong,))
        assert refusal.value.status == 401
    for several in (
        (),
        (b"sk-old",),
        (b"Basic sk-old",),
        (b"Bearer sk-old",) * 2,
        (b"Bearer sk-old", b"Bearer sk-other"),
    ):
        with pytest.raises(Refusal):
            RING.find(several)


def test_hashes_that_begin_alike_are_told_apart():
    one, two = keys.Tenant(name="one"), keys.Tenant(name="two")
    digest = sha256(b"sk-1").digest()
    close = digest[:-1] + bytes([digest[-1] ^ 1])
    assert keys.Keyring({close: two, digest: one}).find((b"Bearer sk-1",)) is one
    with pytest.raises(Refusal):
        keys.Keyring({close: two}).find((b"Bearer sk-1",))


def test_every_wrong_key_gets_the_same_answer():
    answers = set()
    for credentials in ((), (b"",), (b"Bearer sk-ol",), (b"Bearer sk-old", b"x"), (b"\xff" * 50,)):
        with pytest.raises(Refusal) as refusal:
            RING.find(credentials)
        answers.add(errors.render(refusal.value, Dialect.CHAT))
    assert len(answers) == 1


def test_401_and_403_have_the_shape_of_each_api():
    with pytest.raises(Refusal) as no_key:
        RING.find(())
    with pytest.raises(Refusal) as no_model:
        keys.check_model(RING.find((b"Bearer sk-old",)), "secret-model")
    assert "secret" not in no_model.value.message
    for refusal, status, code, kind in (
        (no_key.value, 401, "invalid_api_key", "authentication_error"),
        (no_model.value, 403, "model_not_allowed", "permission_error"),
    ):
        told, _, body = errors.render(refusal, Dialect.CHAT)
        assert told == status and json.loads(body)["error"]["code"] == code
        told, _, body = errors.render(refusal, Dialect.MESSAGES)
        assert told == status and json.loads(body)["type"] == "error"
        assert json.loads(body)["error"]["type"] == kind
    assert no_key.value.extra == b"www-authenticate: Bearer\r\n"


def test_a_tenant_may_use_its_models_and_all_if_it_names_none():
    a, b = RING.find((b"Bearer sk-old",)), RING.find((b"Bearer sk-other",))
    keys.check_model(a, "x/y")
    keys.check_model(b, "anything")
    assert not a.may_use("M") and not a.may_use("m/") and not a.may_use("")


def test_what_a_tenant_may_is_read_and_the_rest_is_without_bound():
    a, b = RING.find((b"Bearer sk-old",)), RING.find((b"Bearer sk-other",))
    assert (a.rpm, a.tokens_per_minute, a.concurrency, a.weight, a.queue_share) == (60, 0, 0, 2.5, 1.0)
    assert (b.rpm, b.tokens_per_minute, b.concurrency, b.weight, b.queue_share) == (0, 1000, 3, 1.0, 0.25)
    assert (a.klass, keys.ANONYMOUS.klass, b.klass) == (0, 1, 2)


def test_engines_get_a_salt_per_tenant_and_a_priority_per_class():
    ours = [
        json.loads(b"{" + RING.find((b"Bearer " + key,)).ours[1:] + b"}") for key in (b"sk-old", b"sk-new", b"sk-other")
    ]
    assert ours[0] == ours[1] and ours[0]["cache_salt"] != ours[2]["cache_salt"]
    assert [o["priority"] for o in ours] == [-10, -10, 10]
    assert all(o["cache_salt"].isalnum() and len(o["cache_salt"]) == 32 for o in ours)
    plain = parse_keys({"tenants": {"a": {"keys": [OLD]}}}, CLASSES, DEFAULT_CLASS, salted=False)
    assert plain.find((b"Bearer sk-old",)).ours == b"" == keys.ANONYMOUS.ours


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"Bearer sk-1", b"sk-1"),
        (b"bearer  sk-1 ", b"sk-1"),
        (b"BEARER sk-1", b"sk-1"),
        (b"Basic sk-1", b""),
        (b"sk-1", b""),
        (b"Bearer", b""),
        (b"", b""),
        (b"Bearersk-1", b""),
    ],
)
def test_the_key_of_an_authorization_header_follows_the_word_bearer(value, key):
    assert keys.bare(value) == key


def test_an_empty_key_opens_nothing():
    for text in ("", "\n", "Bearer "):
        with pytest.raises(KeysError) as refused:
            ring(a={"keys": [keys.hashed(text)]})
        assert "hash of an empty key" in str(refused.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "keys file: write a mapping"),
        ([], "keys file: write a mapping"),
        ({}, "tenants: write a mapping"),
        ({"tenants": {}}, "tenants: write 1 to"),
        ({"tenant": {}}, "tenant: unknown; known here: tenants"),
        ({"tenants": {"a": []}}, "tenants.a: write a mapping"),
        ({"tenants": {"a b": {"keys": [OLD]}}}, "tenants: 'a b' is not a name"),
        ({"tenants": {'a"}': {"keys": [OLD]}}}, "is not a name"),
        ({"tenants": {1: {"keys": [OLD]}}}, "tenants: '1' is not a name"),
        ({"tenants": {"a": {}}}, "tenants.a.keys: write one or 2 hashes"),
        ({"tenants": {"a": {"keys": []}}}, "tenants.a.keys: write one or 2 hashes"),
        ({"tenants": {"a": {"keys": [OLD, NEW, OTHER]}}}, "tenants.a.keys: write one or 2 hashes"),
        ({"tenants": {"a": {"keys": "sk-plain"}}}, "tenants.a.keys: write one or 2 hashes"),
        ({"tenants": {"a": {"keys": ["sk-plain"]}}}, "tenants.a.keys: an entry is not the lower-case hex"),
        ({"tenants": {"a": {"keys": [OLD.upper()]}}}, "tenants.a.keys: an entry is not the lower-case hex"),
        ({"tenants": {"a": {"keys": [OLD, OLD]}}}, "tenants.a.keys: a key stands in this file twice"),
        ({"tenants": {"a": {"keys": [OLD]}, "b": {"keys": [OLD]}}}, "tenants.b.keys: a key stands in this file twice"),
        ({"tenants": {"a": {"keys": [OLD], "rpm": -1}}}, "tenants.a.rpm: -1 is not a whole number"),
        ({"tenants": {"a": {"keys": [OLD], "rpm": True}}}, "tenants.a.rpm: True is not a whole number"),
        ({"tenants": {"a": {"keys": [OLD], "concurrency": 1.5}}}, "tenants.a.concurrency: 1.5 is not"),
        ({"tenants": {"a": {"keys": [OLD], "weight": 0}}}, "tenants.a.weight: 0 is not a number above 0"),
        ({"tenants": {"a": {"keys": [OLD], "weight": float("nan")}}}, "tenants.a.weight: nan is not a number"),
        ({"tenants": {"a": {"keys": [OLD], "queueShare": 2}}}, "tenants.a.queueShare: 2 is not a number above 0"),
        (
            {"tenants": {"a": {"keys": [OLD], "class": "vip"}}},
            "tenants.a.class: 'vip' is not one of high, standard, low",
        ),
        ({"tenants": {"a": {"keys": [OLD], "models": []}}}, "tenants.a.models: write a list of model names"),
        ({"tenants": {"a": {"keys": [OLD], "models": "m"}}}, "tenants.a.models: write a list of model names"),
        ({"tenants": {"a": {"keys": [OLD], "tpm": 1}}}, "tenants.a.tpm: unknown; known here: class, concurrency"),
    ],
)
def test_a_wrong_keys_file_is_refused_by_its_path_and_never_shown(raw, message):
    with pytest.raises(KeysError) as refused:
        parse_keys(raw, CLASSES, DEFAULT_CLASS)
    assert message in str(refused.value)
    assert "sk-plain" not in str(refused.value) and OLD not in str(refused.value).lower()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(OLD),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tenants", "keys", "models", "rpm", "class", "weight", "a"]), inner, max_size=4
        )
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(raw=junk)
def test_no_keys_file_raises_anything_but_a_keys_error(raw):
    try:
        found = parse_keys(raw, CLASSES, DEFAULT_CLASS)
    except KeysError:
        return
    assert found.tenants
