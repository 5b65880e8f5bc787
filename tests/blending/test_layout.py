"""Layouts: order, repetitions, text between, variants, and the tokens whose caches are right for their place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import kvtool
from kvtool import Store
from kvtool.blending.layout import Cached, Layout, Text, chosen_document, lay_out
from kvtool.errors import MismatchError, StoreError, UsageError
from kvtool.store.local import LocalStore

Make = Callable[..., Store]


def ids(store: LocalStore, name: str, segment: int = 0) -> list[int]:
    return store.open(name, segment=segment).token_ids.tolist()


def prefix_ids(store: LocalStore, name: str = "a.txt") -> list[int]:
    return store.parts(name)[0].token_ids.tolist()


def variants(store: LocalStore, layout: Layout) -> list[str]:
    """The variant of each segment after the prefix."""
    names = {
        variant.artifact: name
        for document in store.values()
        for segment in document.segments
        for name, variant in segment.variants.items()
    }
    return [names[segment.artifact.digest] for segment in layout.segments if segment.start]


def spans(mask: object) -> list[tuple[int, int]]:
    """The runs of True, as (start, stop)."""
    flags = [False, *mask.tolist(), False]  # type: ignore[attr-defined]
    edges = [n for n in range(len(flags) - 1) if flags[n] != flags[n + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


# Order


def test_one_after_the_other_in_the_order_of_the_names(documents: LocalStore, lively: kvtool.Model) -> None:
    prefix, a, b = prefix_ids(documents), ids(documents, "a.txt"), ids(documents, "b.txt")
    assert len(prefix) > 1
    for names, expected in ((["a.txt", "b.txt"], a + b), (["b.txt", "a.txt"], b + a)):
        layout = lay_out(documents, names, lively)
        assert layout.token_ids.tolist() == prefix + expected
        assert [segment.document for segment in layout.segments] == ["the prefix", *names]
        assert layout.prefix_tokens == len(prefix)
        assert layout.n_document_tokens == len(a) + len(b)
        assert layout.documents == tuple(dict.fromkeys(names))
        assert layout.cached.all()


def test_how_far_each_is_moved(documents: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(documents, ["b.txt", "a.txt", "b.txt"], lively)
    n_a, n_b = len(ids(documents, "a.txt")), len(ids(documents, "b.txt"))
    assert [segment.moved for segment in layout.segments] == [0, 0, n_b, n_b + n_a]
    starts = [segment.start - layout.prefix_tokens for segment in layout.segments[1:]]
    assert starts == [0, n_b, n_b + n_a]
    assert layout.segments[-1].stop == len(layout.token_ids)


def test_a_document_may_stand_there_twice(documents: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(documents, ["a.txt", "a.txt"], lively)
    assert layout.token_ids.tolist() == prefix_ids(documents) + 2 * ids(documents, "a.txt")
    n = layout.prefix_tokens + len(ids(documents, "a.txt"))
    assert spans(layout.exact) == [(0, n)]
    assert layout.documents == ("a.txt",)


def test_a_name_alone_is_a_list_of_one(documents: LocalStore, lively: kvtool.Model) -> None:
    for part in ("a.txt", Cached("a.txt"), ["a.txt"], iter(["a.txt"])):
        layout = lay_out(documents, part, lively)  # type: ignore[arg-type]
        assert layout.token_ids.tolist() == prefix_ids(documents) + ids(documents, "a.txt")
        assert layout.exact.all()


def test_without_a_prefix(lively: kvtool.Model, prefill_texts: Make) -> None:
    store = prefill_texts(lively, system=None, no_prefix=True)
    layout = lay_out(store, ["b.txt", "a.txt"], lively)
    assert layout.prefix_tokens == 0
    assert layout.token_ids.tolist() == ids(store, "b.txt") + ids(store, "a.txt")
    assert spans(layout.exact) == [(0, len(ids(store, "b.txt")))]


# Text


def test_text_between_has_no_cache(documents: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(documents, ["a.txt", "b.txt", "c@home.txt"], lively, separator=" … ")
    gap = lively.tokenizer(" … ").input_ids
    prefix = prefix_ids(documents)
    a, b, c = (ids(documents, name) for name in ("a.txt", "b.txt", "c@home.txt"))
    assert layout.token_ids.tolist() == prefix + a + gap + b + gap + c
    first = len(prefix + a)
    second = first + len(gap + b)
    assert spans(~layout.cached) == [(first, first + len(gap)), (second, second + len(gap))]
    assert layout.n_document_tokens == len(a + gap + b + gap + c)


def test_text_before_a_document_leaves_nothing_exact(documents: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(documents, [Text("Read this: "), "a.txt"], lively)
    n = layout.prefix_tokens
    first = lively.tokenizer("Read this: ").input_ids
    assert layout.token_ids.tolist() == [*prefix_ids(documents), *first, *ids(documents, "a.txt")]
    assert spans(layout.exact) == [(0, n)]
    assert spans(~layout.cached) == [(n, n + len(first))]


def test_text_after_a_document_leaves_it_exact(documents: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(documents, ["a.txt", Text(" So it is.")], lively)
    n = layout.prefix_tokens + len(ids(documents, "a.txt"))
    assert spans(layout.exact) == [(0, n)]
    assert len(layout.token_ids) == n + len(" So it is.")


def test_a_special_token_in_a_text_is_text(documents: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(documents, ["a.txt", Text("<|end|>")], lively)
    assert 256 not in layout.token_ids[layout.prefix_tokens :].tolist()
    assert lively.tokenizer.decode(layout.token_ids[-7:]) == "<|end|>"


# Segments


def test_a_long_document_stands_there_with_all_its_segments(
    documents: LocalStore, lively: kvtool.Model, texts: dict[str, str]
) -> None:
    n = len(documents["long.txt"].segments)
    assert n == 3
    layout = lay_out(documents, "long.txt", lively, separator="\n---\n")
    assert [segment.document for segment in layout.segments] == ["the prefix", *["long.txt"] * n]
    assert lively.tokenizer.decode(layout.token_ids[layout.prefix_tokens :]) == texts["long.txt"]
    # What was split continues without the text that stands between documents.
    assert layout.cached.all()
    first = layout.prefix_tokens + len(ids(documents, "long.txt"))
    assert spans(layout.exact) == [(0, first)]
    assert not any(segment.moved for segment in layout.segments[:2])


def test_one_segment_alone_is_exact_wherever_it_was_in_its_document(
    documents: LocalStore, lively: kvtool.Model
) -> None:
    layout = lay_out(documents, Cached("long.txt", segment=2), lively)
    assert layout.token_ids.tolist() == prefix_ids(documents) + ids(documents, "long.txt", 2)
    assert layout.exact.all()


def test_segments_in_any_order(documents: LocalStore, lively: kvtool.Model) -> None:
    parts = [Cached("long.txt", segment=2), "a.txt", Cached("long.txt", segment=0)]
    layout = lay_out(documents, parts, lively)
    third, first = (ids(documents, "long.txt", segment) for segment in (2, 0))
    assert layout.token_ids.tolist() == prefix_ids(documents) + third + ids(documents, "a.txt") + first


# Variants


def test_the_variant_is_that_of_documents_that_name_none(documents: LocalStore, lively: kvtool.Model) -> None:
    parts = ["a.txt", Cached("b.txt", "raw"), Cached("long.txt", segment=1)]
    layout = lay_out(documents, parts, lively, variant="kivi")
    assert variants(documents, layout) == ["kivi", "raw", "kivi"]
    # A compressed cache stands for what it was made from.
    assert spans(layout.exact) == [(0, layout.segments[1].stop)]


def test_after_other_text_the_averaged_variant_is_taken(prepared: LocalStore, lively: kvtool.Model) -> None:
    layout = lay_out(prepared, ["a.txt", "b.txt", "long.txt"], lively)
    assert variants(prepared, layout) == ["raw", *["averaged"] * 4]
    layout = lay_out(prepared, "long.txt", lively)
    assert variants(prepared, layout) == ["raw", "averaged", "averaged"]
    layout = lay_out(prepared, ["a.txt", "b.txt"], lively, variant="kivi")
    assert variants(prepared, layout) == ["kivi", "kivi-averaged"]
    layout = lay_out(prepared, [Text("See: "), "b.txt"], lively)
    assert variants(prepared, layout) == ["averaged"]


def test_a_variant_that_is_named_is_what_is_taken(prepared: LocalStore, lively: kvtool.Model) -> None:
    parts = ["a.txt", Cached("b.txt", "raw"), Cached("c@home.txt", "averaged")]
    layout = lay_out(prepared, parts, lively)
    assert variants(prepared, layout) == ["raw", "raw", "averaged"]


@pytest.mark.parametrize(("named", "exact"), [("averaged", "raw"), ("kivi-averaged", "kivi")])
def test_a_first_segment_is_taken_from_its_own_cache_whatever_is_named(
    prepared: LocalStore, lively: kvtool.Model, named: str, exact: str
) -> None:
    for parts in (["a.txt", "b.txt"], [Cached("a.txt", named), Cached("b.txt", named)]):
        layout = lay_out(prepared, parts, lively, variant=named)
        assert variants(prepared, layout) == [exact, named]
        assert spans(layout.exact) == [(0, layout.segments[1].stop)]
    # A segment alone is no blend: what is named can be looked at.
    assert variants(prepared, lay_out(prepared, Cached("a.txt", named), lively)) == [named]
    long = lay_out(prepared, Cached("long.txt", named), lively)
    assert variants(prepared, long) == [exact, named, named]
    # After a text, or after another prefix than its own, it is not exact.
    after_text = lay_out(prepared, [Text("See: "), Cached("a.txt", named)], lively)
    moved = lay_out(prepared, Cached("a.txt", named), lively, prefix=[1, 2, 3])
    assert variants(prepared, after_text) == variants(prepared, moved) == [named]


def test_what_was_made_for_blending_is_exact_nowhere(
    prepared: LocalStore, lively: kvtool.Model, tmp_path: Path
) -> None:
    store = LocalStore(shutil.copytree(prepared.root, tmp_path / "without"))
    for variant, exact in (("averaged", "raw"), ("kivi-averaged", "kivi")):
        # What was asked for is taken where the exact cache is missing.
        store.discard(store["a.txt"].segments[0].variants[exact])
        layout = lay_out(store, [Cached("a.txt", variant), Cached("b.txt", "raw")], lively)
        assert variants(store, layout) == [variant, "raw"]
        assert not layout.segments[1].moved
        assert spans(layout.exact) == [(0, layout.prefix_tokens)]


# Errors


@pytest.mark.parametrize("parts", [[], [Text("words alone")]], ids=str)
def test_no_document(documents: LocalStore, lively: kvtool.Model, parts: list[Text]) -> None:
    with pytest.raises(UsageError, match=r"^no document to blend: name at least one .*kvtool ls"):
        lay_out(documents, parts, lively)
    with pytest.raises(UsageError, match="no document to blend"):
        kvtool.blend(documents, parts, lively)


def test_an_unknown_document_suggests_near_names(documents: LocalStore, lively: kvtool.Model) -> None:
    with pytest.raises(StoreError, match=r"^a.text: is not in the store .*did you mean a.txt"):
        kvtool.blend(documents, ["b.txt", "a.text"], lively)


def test_a_missing_variant_says_how_it_is_made(documents: LocalStore, lively: kvtool.Model) -> None:
    klt = r"b.txt: has no variant 'klt', only kivi, raw; run kvtool compress b.txt --recipe klt$"
    for part, message in (
        (Cached("b.txt", "klt"), klt),
        (Cached("b.txt", "averaged"), r"no variant 'averaged'.*; prefill with --neighbours$"),
        (Cached("b.txt", "klt-averaged"), r"run kvtool compress b.txt --recipe klt --source averaged$"),
        (Cached("long.txt", segment=3), r"long.txt: has no segment 3; it has 3, counted from 0"),
    ):
        with pytest.raises(StoreError, match=message):
            lay_out(documents, ["a.txt", part], lively)


def test_documents_under_different_prefixes_are_refused(
    lively: kvtool.Model, copied: LocalStore, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("Prefilled under no system prompt.\n")
    kvtool.prefill([tmp_path / "other.txt"], model=lively, store=copied)
    here, there = copied["a.txt"].prefix, copied["other.txt"].prefix
    with pytest.raises(MismatchError) as caught:
        lay_out(copied, ["a.txt", "other.txt"], lively)
    assert str(caught.value) == (
        f"other.txt: was prefilled under another prefix (1 token, digest {there['digest'][:12]}…) than "
        f"a.txt ({here['tokens']} tokens, {here['digest'][:12]}…); prefill both under the same"
    )
    lay_out(copied, ["other.txt", "other.txt"], lively)


def test_a_prefix_that_is_not_the_documents_own_is_refused(
    lively: kvtool.Model, copied: LocalStore, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("Prefilled under no system prompt.\n")
    kvtool.prefill([tmp_path / "other.txt"], model=lively, store=copied)
    for artifact in (copied["other.txt"].prefix_artifact, None):
        copied.commit(replace(copied["a.txt"], prefix_artifact=artifact))
        with pytest.raises(MismatchError, match=r"^a.txt: the store has another prefix.*--replace"):
            lay_out(copied, ["a.txt", "b.txt"], lively)


def test_another_models_documents_are_refused(
    documents: LocalStore, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    other = kvtool.load_model(make_model(tmp_path / "other", seed=1, num_hidden_layers=4), device="cpu")
    with pytest.raises(MismatchError, match=r"was made by another model: its weights is"):
        kvtool.blend(documents, ["a.txt", "b.txt"], other)


def test_more_than_the_context_is_refused(documents: LocalStore, lively: kvtool.Model) -> None:
    n, prefix = len(ids(documents, "a.txt")), len(prefix_ids(documents))
    most = (lively.context - 1 - prefix) // n
    assert len(lay_out(documents, ["a.txt"] * most, lively).token_ids) < lively.context
    total = f"{prefix + n * (most + 1):,}"
    message = rf"^a.txt: together they are {total} tokens long, .* context of 1,024"
    with pytest.raises(UsageError, match=message):
        lay_out(documents, ["a.txt"] * (most + 1), lively)


# NAME@VARIANT


def test_a_name_may_be_given_with_a_variant(documents: LocalStore) -> None:
    assert chosen_document(documents, "a.txt") == Cached("a.txt")
    assert chosen_document(documents, "a.txt@kivi") == Cached("a.txt", "kivi")
    assert chosen_document(documents, "long.txt@kivi", 1) == Cached("long.txt", "kivi", 1)


def test_a_name_with_an_at_sign_is_a_name(documents: LocalStore) -> None:
    assert chosen_document(documents, "c@home.txt") == Cached("c@home.txt")
    assert chosen_document(documents, "c@home.txt@kivi") == Cached("c@home.txt", "kivi")


def test_a_document_comes_before_a_variant_of_another(copied: LocalStore) -> None:
    copied.commit(replace(copied["a.txt"], name="a.txt@kivi"))
    assert chosen_document(copied, "a.txt@kivi") == Cached("a.txt@kivi")
    assert chosen_document(copied, "a.txt@raw") == Cached("a.txt", "raw")


@pytest.mark.parametrize("text", ["a.text", "a.text@kivi"])
def test_a_name_that_is_not_there_suggests_near_ones(documents: LocalStore, text: str) -> None:
    with pytest.raises(StoreError, match=rf"^{text}: is not in the store .*did you mean.*a.txt"):
        chosen_document(documents, text)
