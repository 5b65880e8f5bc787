"""Caches are put in their places layer by layer: checked, moved and traced. Errors of a thread are raised."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kvtool
from kvtool import Store
from kvtool.blending.layer_loader import READERS, LayerLoader, empty_cache
from kvtool.blending.layout import Cached, Text, lay_out
from kvtool.engines.capabilities import key_rotations
from kvtool.errors import ArtifactError, StoreError
from kvtool.system.trace import Trace
from tests.caches import full_prefill, same

QUESTION = "How many ships are in the harbour?"
THREE = ["a.txt", "b.txt", "c@home.txt"]


def flip(store: Store, name: str, tensor: str, variant: str = "raw") -> Path:
    opened = store.open(name, variant)
    data = bytearray(opened.path.read_bytes())
    data[opened.offsets[tensor]] ^= 1
    opened.path.write_bytes(data)
    return opened.path


# At their places


@pytest.mark.parametrize("make", ["lively", "latent"])
def test_moved_keys_are_a_full_prefills_at_the_first_layer(
    request: pytest.FixtureRequest, make: str, prefill_texts: Callable[..., Store]
) -> None:
    model = request.getfixturevalue(make)
    store = prefill_texts(model)
    cache = kvtool.blend(store, ["long.txt", "b.txt", "a.txt", "b.txt"], model, recompute=0)
    full = full_prefill(model, cache.token_ids)
    torch.testing.assert_close(cache.layers[0].keys, full.layers[0].keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cache.layers[0].values, full.layers[0].values, atol=1e-5, rtol=1e-4)


def test_what_is_not_moved_is_what_was_stored(documents: Store, lively: kvtool.Model) -> None:
    own = documents.load("b.txt", lively)
    cache = kvtool.blend(documents, ["b.txt", "a.txt"], lively, recompute=0)
    assert same(cache, own, slice(own.get_seq_length()))


def test_variants_compressed_and_raw_in_one_prompt(documents: Store, lively: kvtool.Model) -> None:
    raw = kvtool.blend(documents, THREE, lively, recompute=0)
    parts = ["a.txt", Cached("b.txt", "kivi"), Cached("c@home.txt", "raw")]
    mixed = kvtool.blend(documents, parts, lively, recompute=0)
    assert torch.equal(raw.token_ids, mixed.token_ids)
    _, a, b, c = lay_out(documents, parts, lively).segments
    restored = documents.read("b.txt", "kivi")
    assert all(same(mixed, raw, slice(segment.start, segment.stop)) for segment in (a, c))
    for n, (mine, other) in enumerate(zip(mixed.layers, raw.layers, strict=True)):
        own = slice(b.start, b.stop)
        # Nothing turns the values: they are what the variant holds.
        assert torch.equal(mine.values[0, :, own], restored.layers[n].values)
        lost = (mine.keys - other.keys)[:, :, own].norm() / other.keys[:, :, own].norm()
        assert 0 < lost < 0.02


def test_the_same_again_is_the_same_to_the_bit(prepared: Store, lively: kvtool.Model) -> None:
    options = {"question": QUESTION, "separator": "\n\n"}
    first, *others = (kvtool.blend(prepared, ["long.txt", *THREE], lively, **options) for _ in range(3))
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("variant", ["raw", "kivi"])
def test_in_inference_mode_too(documents: Store, lively: kvtool.Model, variant: str) -> None:
    options = {"variant": variant, "question": QUESTION, "separator": "\n\n"}
    usual = kvtool.blend(documents, THREE, lively, **options)
    with torch.inference_mode():
        inside = kvtool.blend(documents, THREE, lively, **options)
    assert same(usual, inside)
    ids = torch.cat([inside.token_ids, torch.tensor([1, 2])])[None]
    assert lively.model.generate(ids, past_key_values=inside, max_new_tokens=2).shape[1] == ids.shape[1] + 2


# What goes wrong


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("policy", ["none", "legolink", "cacheblend", "drift"])
def test_a_broken_byte_is_an_error_and_leaves_no_thread(
    copied: Store, lively: kvtool.Model, policy: str, layer: int
) -> None:
    tensor = f"layers.{layer:04d}.values"
    path = flip(copied, "b.txt", tensor)
    before = threading.enumerate()
    with pytest.raises(ArtifactError, match=rf"tensor {tensor} has changed.*verify --remove") as caught:
        kvtool.blend(copied, THREE, lively, policy=policy, question=QUESTION)
    assert str(path) in str(caught.value)
    assert threading.enumerate() == before
    # The model is as it was.
    assert kvtool.blend(copied, ["a.txt", "c@home.txt"], lively, question=QUESTION).recomputed


def test_a_broken_compressed_artifact_is_an_error(copied: Store, lively: kvtool.Model) -> None:
    opened = copied.open("b.txt", "kivi")
    tensor = next(name for name in opened.entries if name.startswith("layers.0002"))
    flip(copied, "b.txt", tensor, "kivi")
    before = threading.enumerate()
    with pytest.raises(ArtifactError, match=rf"tensor {tensor} has changed"):
        kvtool.blend(copied, ["a.txt", Cached("b.txt", "kivi")], lively)
    assert threading.enumerate() == before


def test_a_missing_artifact_is_an_error(copied: Store, lively: kvtool.Model) -> None:
    copied.discard(copied["b.txt"].segments[0].variants["raw"])
    with pytest.raises(StoreError, match=r"^b.txt: its artifact .* is missing; run the same prefill"):
        kvtool.blend(copied, THREE, lively)


def test_leaving_early_waits_for_the_threads(documents: Store, lively: kvtool.Model) -> None:
    layout = lay_out(documents, THREE, lively)
    rotations = key_rotations(lively)
    assert rotations is not None
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt), LayerLoader(layout, rotations, empty_cache(layout), Trace()):
        raise KeyboardInterrupt
    assert threading.enumerate() == before


def test_torch_has_as_many_threads_as_before(documents: Store, lively: kvtool.Model) -> None:
    torch.set_num_threads(2)
    try:
        kvtool.blend(documents, THREE, lively)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# Room


def test_a_question_longer_than_the_usual_room_fits(documents: Store, lively: kvtool.Model) -> None:
    cache = kvtool.blend(documents, THREE, lively, question="Where? " * 60, policy="prophet")
    short = kvtool.blend(documents, THREE, lively, policy="none")
    layout = lay_out(documents, THREE, lively)
    assert cache.get_seq_length() == len(layout.token_ids)
    assert same(cache, short, layout.exact)


# Traces


def test_a_trace_has_what_was_done(documents: Store, lively: kvtool.Model) -> None:
    trace = Trace()
    parts = ["a.txt", Text(" and "), Cached("b.txt", "kivi")]
    kvtool.blend(documents, parts, lively, question=QUESTION, trace=trace)
    by_kind: dict[str, list[str]] = {}
    for span in trace.spans:
        by_kind.setdefault(span.kind, []).append(span.name)
    assert {"read", "decode", "move", "look", "recompute"} <= by_kind.keys()
    layers = range(4)
    assert sorted(by_kind["read"]) == sorted(
        f"layer {n} of {name}" for n in layers for name in ("the prefix", "a.txt", "b.txt")
    )
    assert sorted(by_kind["decode"]) == sorted(by_kind["move"]) == [f"layer {n} of b.txt" for n in layers]
    n_tokens = kvtool.blend(documents, parts, lively, question=QUESTION).recomputed
    assert by_kind["recompute"] == [f"{n_tokens} tokens in layer {n}" for n in layers]
    threads = {span.thread for span in trace.spans if span.kind in ("read", "decode", "move")}
    assert threads <= {f"loading_{n}" for n in range(READERS)}
    assert {span.thread for span in trace.spans if span.kind in ("look", "recompute", "wait")} == {"model"}


@pytest.mark.parametrize("recompute", [0.0, 0.15, 1.0])
def test_a_trace_is_what_chrome_reads(
    documents: Store, lively: kvtool.Model, tmp_path: Path, recompute: float
) -> None:
    trace = Trace()
    kvtool.blend(documents, THREE, lively, question=QUESTION, recompute=recompute, trace=trace)
    trace.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [event for event in events if event["ph"] == "X"]
    assert len(names) + len(spans) == len(events)
    assert len(spans) == len(trace.spans)
    assert len(set(names.values())) == len(names)
    assert {event["tid"] for event in spans} == set(names)
    starts = [event["ts"] for event in spans]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert all(event["dur"] >= 0 and event["pid"] == 1 for event in events if event["ph"] == "X")
    for event in spans:
        assert event["name"].startswith(event["cat"])
    # Of one thread, a span ends before the next begins, or holds it.
    for tid in names:
        own = [(event["ts"], event["ts"] + event["dur"]) for event in spans if event["tid"] == tid]
        for (_, end), (start, stop) in itertools.pairwise(own):
            assert start >= end - 0.2 or stop <= end + 0.2


def test_a_trace_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"trace.json: cannot be written .*--trace"):
        Trace().write(tmp_path / "none" / "trace.json")
