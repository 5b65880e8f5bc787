"""Which documents and variants stay: rules on documents that are made here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.digest import digest
from kvtool.store.manifest import Document, Segment, Variant
from kvtool.store.room.rules import Candidate, Choice, Reason, Rules, choose

NOW, DAY = 1_000_000.0, 86_400.0


def document(name: str, **variants: tuple[str, int]) -> Document:
    """One of one segment; each variant's artifact, by a short name, and its bytes."""
    made = {label: Variant(digest(key.encode()), nbytes) for label, (key, nbytes) in variants.items()}
    origin = {"identity": "", "digest": "", "origin": {"kind": "none"}}
    return Document(name, "", {"name": "m", "fingerprint": "f"}, origin, None, (Segment("i", 4, 0, 4, made),))


def candidate(name: str, *, committed: float = 0, used: float = 0, kept: bool = False) -> Candidate:
    """A document of 100 bytes; days before now."""
    made = document(name, raw=(f"{name}-raw", 90), klt=(f"{name}-klt", 10))
    return Candidate(made, NOW - committed * DAY, NOW - used * DAY, kept)


def chosen(documents: list[Candidate], rules: Rules, now: float, **bytes: int) -> Choice:
    """``choose``, where all artifacts are stored as they are."""
    stored = {v.artifact: v.nbytes for each in documents for v in each.document.artifacts}
    return choose(documents, stored, rules, now, **bytes)


def test_what_is_not_stored_takes_no_room() -> None:
    a = candidate("a")
    stored = {a.document.artifacts[0].artifact: 32}
    assert choose([a, candidate("b")], stored, Rules(max_bytes=32), NOW).removed == {}


def test_without_rules_all_stays() -> None:
    choice = chosen([candidate("a", committed=1000, used=1000)], Rules(), NOW)
    assert (choice.removed, choice.trimmed, choice.nbytes) == ({}, [], 100)


def test_age_and_last_use() -> None:
    documents = [
        candidate("new"),
        candidate("old", committed=31),
        candidate("idle", committed=8, used=8),
        candidate("old but pinned", committed=99, used=99, kept=True),
    ]
    rules = Rules(max_age=30 * DAY, max_idle=7 * DAY)
    assert chosen(documents, rules, NOW).removed == {"old": Reason.AGE, "idle": Reason.IDLE}


def test_variants_that_are_not_kept_go_unless_nothing_would_be_left() -> None:
    only_raw = Candidate(document("only raw", raw=("x", 90)), NOW, NOW)
    pinned = candidate("pinned", kept=True)
    choice = chosen([candidate("a"), only_raw, pinned], Rules(variants=frozenset({"klt", "nf4"})), NOW)
    assert [(d.name, list(d.segments[0].variants)) for d in choice.trimmed] == [("a", ["klt"])]
    assert choice.removed == {}
    assert choice.nbytes == 10 + 90 + 100


def test_what_was_not_used_for_the_longest_goes_first() -> None:
    documents = [candidate(name, used=days) for name, days in (("b", 2), ("c", 3), ("a", 1))]
    assert chosen(documents, Rules(max_bytes=200), NOW).removed == {"c": Reason.SIZE}
    assert chosen(documents, Rules(max_bytes=199), NOW).removed == {"c": Reason.SIZE, "b": Reason.SIZE}
    assert chosen(documents, Rules(max_bytes=300), NOW).removed == {}
    assert list(chosen(documents, Rules(max_bytes=300), NOW, need_bytes=1).removed) == ["c"]
    assert list(chosen(documents, Rules(max_bytes=300), NOW, extra_bytes=100).removed) == ["c"]


def test_variants_go_before_documents() -> None:
    documents = [candidate(name, used=days) for name, days in (("a", 1), ("b", 2))]
    choice = chosen(documents, Rules(variants=frozenset({"klt"}), max_bytes=20), NOW)
    assert choice.removed == {}
    assert [each.name for each in choice.trimmed] == ["a", "b"]
    assert chosen(documents, Rules(variants=frozenset({"klt"}), max_bytes=10), NOW).trimmed == [
        choice.trimmed[0]
    ]


def test_a_shared_artifact_is_freed_with_the_last_that_names_it() -> None:
    one, two = document("one", raw=("same", 80)), document("two", raw=("same", 80))
    three = document("three", raw=("other", 50))
    documents = [Candidate(each, NOW, NOW - age) for age, each in ((3, one), (2, two), (1, three))]
    assert chosen(documents, Rules(), NOW).nbytes == 130
    # Removing the first alone frees nothing.
    assert list(chosen(documents, Rules(max_bytes=129), NOW).removed) == ["one", "two"]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8), st.integers(0, 60))
def test_no_more_goes_than_must(made: list[tuple[int, bool]], max_bytes: int) -> None:
    documents = [
        Candidate(document(str(n), raw=(f"{n % 5}", 7)), NOW, NOW - used, kept)
        for n, (used, kept) in enumerate(made)
    ]
    choice = chosen(documents, Rules(max_bytes=max_bytes), NOW)
    removed = [each for each in documents if each.document.name in choice.removed]
    left = [each for each in documents if each not in removed]

    def nbytes(candidates: list[Candidate]) -> int:
        return 7 * len({v.artifact for each in candidates for v in each.document.artifacts})

    assert choice.nbytes == nbytes(left)
    assert not any(each.is_kept for each in removed)
    assert choice.nbytes <= max_bytes or all(each.is_kept for each in left)
    if removed:
        (last,) = (each for each in removed if each.document.name == [*choice.removed][-1])
        assert nbytes([*left, last]) > max_bytes
        assert all(each.used >= last.used for each in left if not each.is_kept)
