"""Stored blends that are made again, or not: what they are made of has changed, and what lies under their name is another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvtool
from kvtool.blending import blend as blending
from kvtool.blending import save
from kvtool.blending.blend import BlendOptions, blend
from kvtool.blending.layout import Cached, lay_out
from kvtool.blending.record import BlendedPart, BlendRecord, outdated_blends, record_of
from kvtool.blending.save import save_blend
from kvtool.errors import StoreError, UsageError
from kvtool.model.chat_template import SEPARATOR
from kvtool.store.local import LocalStore

AB = ["a.txt", "b.txt"]
SYSTEM = "Be brief."
"""What all of them are prefilled under."""


@pytest.fixture
def prefilled(copied: LocalStore, lively: kvtool.Model, tmp_path: Path) -> Callable[..., None]:
    """Stores ``text`` as the document ``name``, whatever it was."""

    def prefill(name: str, text: str = "Nine crowns are what it costs by now.") -> None:
        file = tmp_path / name
        file.write_text(text)
        report = kvtool.prefill([file], model=lively, store=copied, replace=True, system=SYSTEM)
        assert report.prefilled == [name]

    return prefill


@pytest.fixture
def after_blending(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Lets something happen while ``save_blend`` blends, once."""

    def during(happens: Callable[[], object]) -> None:
        def blended(*args: Any, **options: Any) -> Any:
            monkeypatch.setattr(save, "blend", blend)
            cache = blend(*args, **options)
            happens()
            return cache

        monkeypatch.setattr(save, "blend", blended)

    return during


def warned(store: LocalStore, name: str) -> list[str]:
    return [error.reason for error in outdated_blends(store, [name])]


def test_a_blend_of_an_old_blend_is_old(
    copied: LocalStore, lively: kvtool.Model, prefilled: Callable[..., None]
) -> None:
    save_blend("ab", AB, lively, copied)
    save_blend("abc", ["ab", "c@home.txt"], lively, copied)
    save_blend("all", ["long.txt", "abc", "ab"], lively, copied)
    assert not any(warned(copied, name) for name in ("ab", "abc", "all"))
    prefilled("a.txt")
    assert warned(copied, "ab") == ["is a blend, and a.txt has changed since"]
    assert warned(copied, "abc") == ["is a blend, and ab is out of date itself"]
    (both,) = warned(copied, "all")
    assert both == "is a blend, and abc is out of date itself; ab is out of date itself"
    # Each in turn, and none before what it is made of.
    with pytest.raises(StoreError, match="ab: is a blend, and a"):
        save_blend("abc", ["ab", "c@home.txt"], lively, copied)
    save_blend("ab", AB, lively, copied)
    assert warned(copied, "abc") == ["is a blend, and ab has changed since"]
    assert save_blend("abc", ["ab", "c@home.txt"], lively, copied).outdated == ("ab",)
    save_blend("all", ["long.txt", "abc", "ab"], lively, copied)
    assert not any(warned(copied, name) for name in ("ab", "abc", "all"))


def test_one_that_cannot_be_read_is_not_trusted(copied: LocalStore, lively: kvtool.Model) -> None:
    save_blend("ab", AB, lively, copied)
    save_blend("abc", ["ab", "c@home.txt"], lively, copied)
    copied.path_of(copied["ab"].segments[0].variants["raw"]).unlink()
    assert warned(copied, "abc") == ["is a blend, and ab cannot be read"]


def test_records_that_go_in_a_circle_are_out_of_date(
    copied: LocalStore, lively: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_blend("ab", AB, lively, copied)
    record = record_of(copied, "ab")
    assert record
    circle = replace(record, parts=(BlendedPart("ab", segments=(record.parts[0].segments[0],)),))
    monkeypatch.setattr("kvtool.blending.record.record_of", lambda *_: circle)
    monkeypatch.setattr(BlendedPart, "is_of", lambda *_: True)
    assert circle.outdated(copied) == {"ab": "is out of date itself"}


def test_another_models_blend_is_left_alone(
    copied: LocalStore, lively: kvtool.Model, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    save_blend("ab", AB, lively, copied)
    before = copied["ab"]
    other = kvtool.load_model(
        make_model(tmp_path / "other", num_hidden_layers=4, max_position_embeddings=1024, seed=7),
        device="cpu",
    )
    for name, text in zip(AB, ("The harbour.", "A loaf."), strict=True):
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in AB]
    kvtool.prefill(files, model=other, store=copied, replace=True, system=SYSTEM)
    with pytest.raises(
        StoreError, match="ab: is in the store already, as the cache of another model, lively"
    ):
        save_blend("ab", AB, other, copied)
    assert copied["ab"] == before
    assert save_blend("ab", AB, other, copied, replace=True).outdated == ("a.txt", "b.txt")
    assert copied["ab"].model["fingerprint"] == other.fingerprint


def test_compressed_variants_stay_with_the_same_blend(
    copied: LocalStore, lively: kvtool.Model, prefilled: Callable[..., None]
) -> None:
    save_blend("ab", AB, lively, copied)
    kvtool.compress(copied, ["ab"], recipe="kivi", bits=8)
    before = copied["ab"]
    copied.commit(before.with_variants(["kivi"]))
    assert not save_blend("ab", AB, lively, copied).is_unchanged
    assert copied["ab"] == before
    blend(copied, AB, lively, separator=SEPARATOR).save(copied, "ab", lively, replace=True)
    assert copied["ab"] == before
    # Another blend is no longer what was compressed.
    prefilled("a.txt")
    save_blend("ab", AB, lively, copied)
    assert copied["ab"].variants == ["raw"]


@pytest.mark.parametrize("name", ["b.txt", "ab", "a.txt"], ids=["a part", "a blend", "a part of a blend"])
def test_a_blend_never_replaces_what_it_is_made_of(
    copied: LocalStore, lively: kvtool.Model, name: str
) -> None:
    save_blend("ab", ["a.txt", "c@home.txt"], lively, copied)
    before = copied[name]
    parts = ["ab", Cached("b.txt", "kivi")]
    with pytest.raises(UsageError, match=f"{name}: is one of the documents that are blended"):
        save_blend(name, parts, lively, copied, replace=True)
    cache = blend(copied, parts, lively)
    with pytest.raises(UsageError, match=f"{name}: is one of the documents that are blended"):
        cache.save(copied, name, lively, replace=True)
    assert copied[name] == before


def test_a_record_says_what_was_blended(
    copied: LocalStore,
    lively: kvtool.Model,
    prefilled: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not what the store has by the time that it is written."""
    old = copied["b.txt"].segments[0].identity
    new_record = blending.new_record

    def late(*args: Any, **options: Any) -> BlendRecord:
        prefilled("b.txt")
        return new_record(*args, **options)

    monkeypatch.setattr(blending, "new_record", late)
    saved = save_blend("ab", AB, lively, copied)
    assert saved.record == record_of(copied, "ab")
    assert saved.record.parts[1].identities == (old,)
    assert warned(copied, "ab") == ["is a blend, and b.txt has changed since"]


def test_all_segments_are_of_one_manifest(
    copied: LocalStore,
    lively: kvtool.Model,
    prefilled: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segments = copied["long.txt"].segments
    opened = LocalStore.open_artifact

    def late(store: LocalStore, variant: Any) -> Any:
        monkeypatch.setattr(LocalStore, "open_artifact", opened)
        prefilled("long.txt", "\n\n".join(f"Paragraph {n}, and nothing else." for n in range(3)))
        return opened(store, variant)

    monkeypatch.setattr(LocalStore, "open_artifact", late)
    placed = lay_out(copied, ["long.txt", "a.txt"], lively).after_prefix
    assert copied["long.txt"].segments != segments
    assert [one.identity for one in placed[:-1]] == [segment.identity for segment in segments]
    assert [one.part for one in placed] == [0] * len(segments) + [1]


def test_what_another_stores_meanwhile_is_not_replaced(
    copied: LocalStore,
    lively: kvtool.Model,
    prefilled: Callable[..., None],
    after_blending: Callable[[Callable[[], object]], None],
) -> None:
    after_blending(lambda: prefilled("ab", "A document of its own."))
    with pytest.raises(StoreError, match="ab: was stored by another meanwhile"):
        save_blend("ab", AB, lively, copied)
    assert not copied["ab"].is_blend
    copied.remove("ab")
    save_blend("ab", AB, lively, copied)
    prefilled("a.txt")
    after_blending(lambda: prefilled("ab", "A document of its own."))
    with pytest.raises(StoreError, match="ab: was stored by another meanwhile"):
        save_blend("ab", AB, lively, copied)
    assert not copied["ab"].is_blend


def test_the_same_blend_may_be_stored_twice_at_a_time(
    copied: LocalStore, lively: kvtool.Model, after_blending: Callable[[Callable[[], object]], None]
) -> None:
    after_blending(lambda: save_blend("ab", AB, lively, copied))
    assert not save_blend("ab", AB, lively, copied).is_unchanged
    assert save_blend("ab", AB, lively, copied).is_unchanged


def test_a_prefix_that_changes_meanwhile_is_not_taken_for_the_old_one(
    copied: LocalStore,
    lively: kvtool.Model,
    tmp_path: Path,
    after_blending: Callable[[Callable[[], object]], None],
) -> None:
    (tmp_path / "b.txt").write_text("A loaf.")

    def prefill() -> None:
        files = [tmp_path / "b.txt"]
        kvtool.prefill(files, model=lively, store=copied, replace=True, system="Be long.")

    after_blending(prefill)
    with pytest.raises(StoreError, match="was prefilled anew while it was blended"):
        save_blend("ab", AB, lively, copied, options=BlendOptions(1))
    assert "ab" not in copied
