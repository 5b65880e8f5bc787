"""A manifest is read as it was written, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvtool.digest import canonical_json, digest_json
from kvtool.errors import StoreError
from kvtool.store.manifest import Document, Segment, Variant

RAW = Variant("a" * 64, 100)
KIVI = Variant("b" * 64, 10, {"name": "kivi", "pipeline": {"keys": [], "values": []}})
DOCUMENT = Document(
    name="docs/ä b.md",
    text_digest="0" * 64,
    model={"name": "tiny", "fingerprint": "1" * 64},
    prefix={"identity": "2" * 64, "digest": "3" * 64, "tokens": 1, "origin": {"kind": "none"}},
    prefix_artifact=Variant("c" * 64, 7),
    segments=(
        Segment("4" * 64, 5, 0, 20, {"raw": RAW, "kivi": KIVI}),
        Segment("5" * 64, 6, 20, 40, {"raw": RAW, "aaa": KIVI}),
    ),
)


def read(data: bytes) -> Document:
    return Document.from_bytes(data, "m.json")


def test_round_trip() -> None:
    data = DOCUMENT.to_bytes()
    assert read(data) == DOCUMENT
    assert read(data).to_bytes() == data
    assert DOCUMENT.n_tokens == 11
    assert DOCUMENT.nbytes("raw") == 200
    assert len(DOCUMENT.artifacts) == 5


def test_only_variants_that_every_segment_has_are_the_documents() -> None:
    assert DOCUMENT.variants == ["raw"]
    assert DOCUMENT.with_variant(1, "kivi", KIVI).variants == ["raw", "kivi"]


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (["raw", "expected", "kivi-expected"], ["raw", "averaged", "kivi-averaged"]),
        (["raw", "unexpected", "expected-2"], ["raw", "unexpected", "expected-2"]),
        (["expected", "averaged"], ["expected", "averaged"]),
    ],
)
def test_variants_have_todays_names(written: list[str], read_as: list[str]) -> None:
    variants = {name: Variant(f"{n}" * 64, n, {"of": "expected"}) for n, name in enumerate(written)}
    old = replace(DOCUMENT, segments=(replace(DOCUMENT.segments[0], variants=variants),))
    (segment,) = read(old.to_bytes()).segments
    assert dict(segment.variants) == dict(zip(read_as, variants.values(), strict=True))
    assert read(read(old.to_bytes()).to_bytes()) == read(old.to_bytes())


def test_a_bit_flipped_anywhere_is_refused() -> None:
    data = bytearray(DOCUMENT.to_bytes())
    for at in range(len(data)):
        for bit in (1, 4, 32):  # 32: the case of a letter
            data[at] ^= bit
            with pytest.raises(StoreError, match=r"^m.json: "):
                read(bytes(data))
            data[at] ^= bit


def test_truncation_and_more_are_refused() -> None:
    data = DOCUMENT.to_bytes()
    for other in [*(data[:n] for n in range(len(data))), data + b" ", b" " + data, data + data]:
        with pytest.raises(StoreError, match="run the same prefill again"):
            read(other)


def test_a_key_given_twice_is_refused() -> None:
    twice = DOCUMENT.to_bytes().replace(b'"format":', b'"format":1,"format":', 1)
    with pytest.raises(StoreError):
        read(twice)


def forged(change: Callable[[dict[str, Any]], object]) -> bytes:
    body = json.loads(DOCUMENT.to_bytes())
    del body["digest"]
    change(body)
    return canonical_json({**body, "digest": digest_json(body)}) + b"\n"


@pytest.mark.parametrize("artifact", ["../../x", "A" * 64, "a" * 63, "", None, 5, "a" * 63 + "/"])
def test_an_artifact_that_is_no_digest_is_refused(artifact: object) -> None:
    def change(body: dict[str, Any]) -> None:
        body["segments"][0]["variants"]["raw"]["artifact"] = artifact

    with pytest.raises(StoreError, match="not a digest"):
        read(forged(change))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no segments": lambda body: body.update(segments=[]),
    "tokens are text": lambda body: body["segments"][0].update(tokens="5"),
    "segments are numbers": lambda body: body.update(segments=[1]),
    "no model": lambda body: body.update(model={}),
    "prefix is text": lambda body: body.update(prefix="chat"),
    "no name": lambda body: body.pop("document"),
    "more": lambda body: body.update(more=1),
    "format is text": lambda body: body.update(format="1"),
    "no format": lambda body: body.pop("format"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_kvtool_never_writes_is_refused_whatever_its_digest(
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert read(forged(lambda body: None)) == DOCUMENT
    with pytest.raises(StoreError, match=r"^m.json: "):
        read(forged(change))


def test_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(StoreError, match=r"format 2, this kvtool reads up to 1; upgrade kvtool"):
        read(forged(lambda body: body.update(format=2)))


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'{"format":NaN}'])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"^m.json: ") as caught:
        read(data)
    assert "\n" not in str(caught.value)
