"""Blends that are stored: their records, their identities, and what they are taken for."""

from __future__ import annotations

import pytest
import torch

import kvtool
from kvtool.artifact.write import Content
from kvtool.blending import save
from kvtool.blending.blend import BlendOptions, blend
from kvtool.blending.layout import Cached, Text
from kvtool.blending.record import record_of
from kvtool.blending.save import save_blend
from kvtool.errors import ArtifactError, StoreError
from kvtool.store.local import LocalStore

ALL = BlendOptions(policy="all")


def test_the_identity_is_known_before_it_is_made(
    copied: LocalStore, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[str] = []
    identity = save._identity
    monkeypatch.setattr(save, "_identity", lambda *args: known.append(identity(*args)) or known[-1])
    parts = ["a.txt", Text("And: "), Cached("b.txt", "kivi"), Cached("long.txt", segment=1)]
    for n, options in enumerate([BlendOptions(), BlendOptions(0.0), BlendOptions(0.4, "even"), ALL]):
        save_blend(f"blend{n}", parts, lively, copied, options=options)
        assert copied[f"blend{n}"].segments[0].identity == known[-1]
    assert len(set(known)) == 4


def test_a_record_names_parts_and_their_segments(copied: LocalStore, lively: kvtool.Model) -> None:
    parts = ["long.txt", Text("And: "), Cached("long.txt", segment=1), Cached("b.txt", "kivi")]
    saved = save_blend("blend", parts, lively, copied, options=BlendOptions(0.25))
    record = record_of(copied, "blend")
    assert record == saved.record
    whole, text, one, compressed = record.parts
    identities = [segment.identity for segment in copied["long.txt"].segments]
    assert len(identities) == 3
    assert whole.identities == tuple(identities)
    assert one.identities == (identities[1],)
    assert text.text == "And: "
    assert [segment.variant for segment in compressed.segments] == ["kivi"]
    assert record.documents == ("long.txt", "long.txt", "b.txt")
    assert (record.recompute, record.separator, record.outdated(copied)) == (0.25, "\n\n", {})
    copied.remove("b.txt")
    assert record.outdated(copied) == {"b.txt": "is no longer in the store"}
    assert record_of(copied, "a.txt") is None


def test_a_variant_says_what_it_is_made_of_without_the_raw_one(
    copied: LocalStore, lively: kvtool.Model
) -> None:
    saved = save_blend("blend", ["a.txt", "b.txt"], lively, copied)
    kvtool.compress(copied, ["blend"], recipe="kivi", bits=8)
    copied.commit(copied["blend"].with_variants(["kivi"]))
    assert record_of(copied, "blend") == saved.record


def test_the_blend_that_is_stored_is_the_one_that_was_made(copied: LocalStore, lively: kvtool.Model) -> None:
    save_blend("blend", ["a.txt", "b.txt"], lively, copied, separator="\n", options=BlendOptions(0.5))
    made = blend(copied, ["a.txt", "b.txt"], lively, separator="\n", recompute=0.5)
    loaded = copied.load("blend", lively)
    assert torch.equal(loaded.token_ids, made.token_ids)
    for stored, new in zip(loaded.layers, made.layers, strict=True):
        assert torch.equal(stored.keys, new.keys)
        assert torch.equal(stored.values, new.values)


def test_only_a_full_prefill_is_taken_for_one(copied: LocalStore, lively: kvtool.Model) -> None:
    save_blend("blend", ["a.txt", "b.txt"], lively, copied)
    save_blend("exact", ["a.txt", "b.txt"], lively, copied, options=ALL)
    assert (copied.open("blend").is_exact, copied.open("exact").is_exact) == (False, True)
    assert copied.open("blend").meta["made"]["policy"] == "drift"
    assert record_of(copied, "exact").policy == "all"


def test_blends_can_be_blended(copied: LocalStore, lively: kvtool.Model) -> None:
    save_blend("two", ["a.txt", "b.txt"], lively, copied)
    save_blend("three", ["two", "c@home.txt"], lively, copied)
    assert record_of(copied, "three").documents == ("two", "c@home.txt")
    assert not copied.open("three").is_exact


def test_a_broken_one_is_made_again(copied: LocalStore, lively: kvtool.Model) -> None:
    save_blend("blend", ["a.txt", "b.txt"], lively, copied)
    path = copied.path_of(copied["blend"].segments[0].variants["raw"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="another blend"):
        save_blend("blend", ["a.txt", "b.txt"], lively, copied)
    path.unlink()
    again = save_blend("blend", ["a.txt", "b.txt"], lively, copied, replace=True)
    assert not again.is_unchanged
    assert path.read_bytes() == whole


def test_a_record_that_is_none_is_named(
    copied: LocalStore, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalStore.put

    def strange(store: LocalStore, content: Content) -> object:
        source = {**content.meta["source"], "blend": {"parts": 1}}
        return put(store, Content(content.tensors, {**content.meta, "source": source}))

    monkeypatch.setattr(LocalStore, "put", strange)
    save_blend("blend", ["a.txt", "b.txt"], lively, copied)
    with pytest.raises(ArtifactError, match="blend: does not say what it was blended of"):
        record_of(copied, "blend")
