"""Variants lie beside the raw artifacts, and go when what they were made from goes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

import kvtool
from kvtool.codecs.quantize.deadzone import Deadzone
from kvtool.codecs.recipe_registry import recipes
from kvtool.codecs.transform.window import Window
from kvtool.compression import workers
from kvtool.compression.pipeline_options import pipeline_of
from kvtool.compression.plan import plan
from kvtool.compression.report import Report
from kvtool.compression.resolve import Job
from kvtool.errors import MismatchError, StoreError, UsageError
from kvtool.store.local import LocalStore
from kvtool.store.segments import SegmentRef, encode_segment

THREE = ["c.txt", "docs/a.md", "docs/b.md"]


def test_all_documents_unless_named(store: LocalStore) -> None:
    report = kvtool.compress(store, recipe="lossless")
    assert report.compressed == THREE
    assert report.unchanged == []
    assert report.variant == "lossless"
    assert report.nbytes == sum(store.size(name, "lossless") for name in store)
    assert report.raw_nbytes == sum(store.size(name) for name in store)
    report = kvtool.compress(store, ["c.txt"], recipe="kivi", bits=4, name="small")
    assert report.compressed == ["c.txt"]
    assert store["c.txt"].variants == ["raw", "lossless", "small"]
    assert store["docs/a.md"].variants == ["raw", "lossless"]


def test_lossless_is(store: LocalStore) -> None:
    kvtool.compress(store, recipe="lossless")
    raw, packed = store.read("c.txt"), store.read("c.txt", variant="lossless")
    for one, other in zip(raw.layers, packed.layers, strict=True):
        assert one.keys.equal(other.keys)
        assert one.values.equal(other.values)
    assert raw.token_ids.equal(packed.token_ids)


def test_again_is_nothing_and_the_raw_artifacts_stay(store: LocalStore) -> None:
    raw = {p: p.read_bytes() for p in store.root.rglob("*.safetensors")}
    kvtool.compress(store, recipe="kivi")
    first = {p: p.read_bytes() for p in store.root.rglob("*.*") if p.is_file()}
    assert first.items() >= raw.items()
    report = kvtool.compress(store, recipe="kivi")
    assert report.compressed == []
    assert report.unchanged == THREE
    assert {p: p.read_bytes() for p in store.root.rglob("*.*") if p.is_file()} == first


def test_the_same_recipe_gives_the_same_bytes(store: LocalStore) -> None:
    kvtool.compress(store, recipe="kivi", bits=3)
    kvtool.compress(store, recipe="kivi", bits=3, name="again")
    for document in store.values():
        variants = document.segments[0].variants
        assert variants["kivi"].artifact == variants["again"].artifact


def test_other_bits_under_the_same_name_need_replace(store: LocalStore) -> None:
    kvtool.compress(store, recipe="kivi", bits=2)
    before = dict(store)
    report = kvtool.compress(store, recipe="kivi", bits=4)
    assert len(report.problems) == 3
    assert "--name" in str(report.problems[0])
    assert "--replace" in str(report.problems[0])
    with pytest.raises(StoreError, match="made otherwise"):
        kvtool.compress(store, ["c.txt"], recipe="kivi", bits=4)
    assert dict(store) == before
    report = kvtool.compress(store, recipe="kivi", bits=4, replace=True)
    assert report.compressed == THREE
    assert store.size("c.txt", "kivi") == report.nbytes - sum(store.size(n, "kivi") for n in THREE[1:])


def test_variants_of_what_changed_are_dropped_and_others_kept(store: LocalStore, tiny: kvtool.Model) -> None:
    kvtool.compress(store, recipe="kivi")
    Path("docs/a.md").write_text("# Apples\n\nThe red apple costs four crowns.\n")
    report = kvtool.prefill(["docs", "c.txt"], model=tiny, store=store)
    assert report.prefilled == ["docs/a.md"]
    assert store["docs/a.md"].variants == ["raw"]
    assert store["docs/b.md"].variants == store["c.txt"].variants == ["raw", "kivi"]
    assert len(store.collect(dry_run=True)) == 2
    assert kvtool.compress(store, recipe="kivi").compressed == ["docs/a.md"]


def test_of_a_long_document_the_unchanged_segments_keep_theirs(store: LocalStore, tiny: kvtool.Model) -> None:
    paragraphs = [f"Paragraph {n} is about the number {n}." for n in range(4)]
    Path("long.md").write_text("\n\n".join(paragraphs))
    options = {"model": tiny, "store": store, "segment_tokens": 40}
    kvtool.prefill(["long.md"], **options)  # type: ignore[arg-type]
    kvtool.compress(store, ["long.md"], recipe="kivi")
    before = store["long.md"]
    assert len(before.segments) == 4
    paragraphs[3] = "Paragraph 3 was rewritten lately."
    Path("long.md").write_text("\n\n".join(paragraphs))
    kvtool.prefill(["long.md"], **options)  # type: ignore[arg-type]
    after = store["long.md"]
    assert after.segments[:3] == before.segments[:3]
    assert list(after.segments[3].variants) == ["raw"]
    assert after.variants == ["raw"]
    report = kvtool.compress(store, ["long.md"], recipe="kivi")
    assert report.compressed == ["long.md"]
    assert store["long.md"].variants == ["raw", "kivi"]


def test_a_missing_variant_is_made_again(store: LocalStore) -> None:
    kvtool.compress(store, recipe="lossless")
    path = store.path_of(store["c.txt"].segments[0].variants["lossless"])
    data = path.read_bytes()
    path.unlink()
    assert kvtool.compress(store, recipe="lossless").compressed == ["c.txt"]
    assert path.read_bytes() == data


def test_one_document_that_cannot_be_compressed_does_not_stop_the_others(store: LocalStore) -> None:
    store.path_of(store["docs/a.md"].segments[0].variants["raw"]).unlink()
    report = kvtool.compress(store, recipe="kivi")
    assert report.compressed == ["c.txt", "docs/b.md"]
    assert "docs/a.md" in str(report.problems[0])
    assert store["docs/a.md"].variants == ["raw"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "gzip"}, "no recipe is called 'gzip'; there are: .*kivi"),
        ({"recipe": "kivi", "bits": 0}, "bits"),
        ({"recipe": "kivi", "bits": 17}, "bits"),
        ({"recipe": "kivi", "bits": "two"}, "bits"),
        ({"colour": 3}, "recipe 'klt' has no parameter 'colour'"),
        ({"recipe": "lossless", "bits": 2}, "bits"),
        ({"recipe": "kivi", "name": "raw"}, "raw: is kept"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    store: LocalStore, options: dict[str, object], says: str
) -> None:
    before = dict(store)
    with pytest.raises(UsageError, match=says):
        kvtool.compress(store, **options)  # type: ignore[arg-type]
    assert dict(store) == before


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "none")
    assert kvtool.compress(store, recipe="kivi").documents_total == 0
    with pytest.raises(StoreError, match="the store is empty"):
        kvtool.compress(store, ["x"], recipe="kivi")
    assert not store.root.exists()


# The default


def test_without_a_recipe_it_is_klt_calibrated_first(
    store: LocalStore, tiny: kvtool.Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvtool")
    report = kvtool.compress(store, model=tiny)
    assert (report.variant, report.compressed) == ("klt", THREE)
    assert caplog.text.count("no calibration for tiny yet: making one") == 1
    (made,) = store.calibrations.values()
    assert (made.method, made.model) == ("klt", tiny.fingerprint)
    klt = recipes()["klt"]
    (stage,) = [s for s in klt.build(made).keys if isinstance(s, Deadzone)]
    assert stage.step == klt.parameters["step"].default
    assert store.open("c.txt", "klt").contents.pipeline.keys == klt.build(made).keys
    again = kvtool.compress(store, model=tiny)
    assert (again.compressed, again.unchanged) == ([], THREE)
    assert list(store.calibrations) == [made.digest]


def test_without_a_recipe_or_a_model_nothing_else_is_taken(store: LocalStore) -> None:
    before = dict(store)
    with pytest.raises(UsageError, match=r"'klt': needs a calibration"):
        kvtool.compress(store)
    assert dict(store) == before


# Recipes that need more than keys and values

NEEDY = sorted(n for n, recipe in recipes().items() if not recipe.calibration and recipe.build().needs)


@pytest.mark.parametrize("recipe", NEEDY)
def test_what_a_recipe_needs_is_measured_with_the_model(
    store: LocalStore, tiny: kvtool.Model, recipe: str
) -> None:
    # What papers always keep is more than these documents have.
    options = {name: 0 for name in ("first", "last", "whole") if name in recipes()[recipe].parameters}
    report = kvtool.compress(store, recipe=recipe, model=tiny, **options)
    assert report.compressed == THREE
    assert not report.problems
    assert report.nbytes < report.raw_nbytes
    cache = store.load("docs/b.md", tiny, recipe)
    assert cache.get_seq_length() == len(cache.token_ids)
    again = kvtool.compress(store, recipe=recipe, model=tiny, name="again", **options)
    assert again.compressed == THREE
    for document in store.values():
        variants = document.segments[0].variants
        assert variants[recipe].artifact == variants["again"].artifact


@pytest.mark.parametrize(("recipe", "whole", "least"), [("l2-norm", 1, 0.5), ("d2o", 2, 1.0)])
def test_the_smallest_share_is_named_before_anything_is_measured(
    store: LocalStore,
    tiny: kvtool.Model,
    recipe: str,
    whole: int,
    least: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the model's two layers, one recipe keeps the first whole, the other all."""
    compress = partial(kvtool.compress, store, recipe=recipe, model=tiny, whole=whole)
    with monkeypatch.context() as patched:
        patched.setattr("kvtool.compression.encode.measure_artifact", Mock(side_effect=AssertionError))
        message = rf"keep is 0.3, .* layers kept whole \(0.*smallest keep .* is {least:g}$"
        with pytest.raises(StoreError, match=message):
            compress("c.txt", keep=0.3)
        report = compress(keep=least - 0.01, dry_run=True)
    assert [error.subject for error in report.problems] == THREE
    assert compress("c.txt", keep=least).compressed == ["c.txt"]


def test_windows_of_heads_that_hold_different_tokens_name_the_option(store: LocalStore) -> None:
    with pytest.raises(
        StoreError, match=r"recent is 3, expected 0 .* leave recent out, .* as heads=tokens does"
    ):
        kvtool.compress(store, "c.txt", recipe="keydiff+kivi", keep=0.5, recent=3)
    kvtool.compress(store, "c.txt", recipe="keydiff+kivi", keep=0.5, recent=3, heads="tokens")


def test_a_recipe_that_needs_attention_is_refused_without_a_model(store: LocalStore) -> None:
    before = dict(store)
    message = r"'mikv' needs attention and queries.*compress --recipe mikv --model MODEL"
    with pytest.raises(UsageError, match=message):
        kvtool.compress(store, recipe="mikv")
    assert dict(store) == before


def test_needs_that_nobody_can_measure_are_named(
    store: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Window, "needs", frozenset({"gradients"}))
    with pytest.raises(UsageError, match="'kivi': needs gradients, which kvtool cannot measure"):
        kvtool.compress(store, recipe="kivi", model=tiny, recent=32)


def test_the_model_must_be_the_one_of_the_artifacts(
    store: LocalStore, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    other = kvtool.load_model(make_model(tmp_path / "other", seed=1), device="cpu")
    report = kvtool.compress(store, recipe="zipcache", model=other)
    assert report.compressed == []
    assert all("made by another model" in str(problem) for problem in report.problems)
    with pytest.raises(MismatchError, match="weights"):
        kvtool.compress(store, "c.txt", recipe="zipcache", model=other)
    assert store["c.txt"].variants == ["raw"]


def test_what_is_there_is_not_measured_again(
    store: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtool.compress(store, recipe="zipcache", model=tiny)
    monkeypatch.setattr("kvtool.engines.stage_inputs.observe", None)
    assert kvtool.compress(store, recipe="zipcache", model=tiny).unchanged == THREE


def test_each_segment_is_measured_after_its_prefix(store: LocalStore, tiny: kvtool.Model) -> None:
    Path("long.md").write_text("\n\n".join(f"Paragraph {n} is about the number {n}." for n in range(4)))
    kvtool.prefill(["long.md"], model=tiny, store=store, segment_tokens=40)
    report = kvtool.compress(store, "long.md", recipe="zipcache", model=tiny)
    assert report.compressed == ["long.md"]
    assert len({s.variants["zipcache"].artifact for s in store["long.md"].segments}) == 4


def test_what_an_interrupted_run_left_is_taken_up(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(report: object) -> None:
        raise KeyboardInterrupt

    pipeline = pipeline_of("kivi")
    leftover = encode_segment(store, SegmentRef("c.txt", 0), pipeline)
    with pytest.raises(KeyboardInterrupt):
        kvtool.compress(store, ["docs/a.md", "docs/b.md"], recipe="kivi", on_progress=killed)
    assert "kivi" in store["docs/a.md"].variants
    monkeypatch.setattr(workers, "encode_segment", lambda *_: pytest.fail("encoded again"))
    assert kvtool.compress(store, ["c.txt"], recipe="kivi").compressed == ["c.txt"]
    assert store["c.txt"].segments[0].variants["kivi"].artifact == leftover.artifact


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_name_what_went_wrong(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtool.compress(store, recipe="cachegen", name="alone")
    broken = store.path_of(store["docs/b.md"].segments[0].variants["raw"])
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    monkeypatch.setattr(workers, "WORTH_SECONDS", 0)
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    report = kvtool.compress(store, recipe="cachegen", sinks=0, recent=0, name="parallel")
    for name in report.compressed:
        alone, parallel = (
            store[name].segments[0].variants[variant].artifact for variant in ("alone", "parallel")
        )
        assert alone == parallel
    # Its artifact is known already, so a run that finds it has nothing to read.
    store.discard(store["docs/b.md"].segments[0].variants["alone"])
    report = kvtool.compress(store, recipe="cachegen", level=1, name="third")
    assert sorted(report.compressed) == ["c.txt", "docs/a.md"]
    assert len(report.problems) == 1
    assert "digest" in str(report.problems[0])


def test_what_was_prefilled_again_meanwhile_gets_no_variant_of_what_it_was(
    store: LocalStore, tiny: kvtool.Model
) -> None:
    def changes(report: Report) -> None:
        if report.segments_done == 1:
            Path("docs/a.md").write_text("# Apples\n\nThe red apple costs four crowns.\n")
            kvtool.prefill(["docs"], model=tiny, store=store)
            store.remove("docs/b.md")

    report = kvtool.compress(store, recipe="kivi", on_progress=changes)
    assert report.compressed == ["c.txt"]
    again, removed = map(str, report.problems)
    assert "docs/a.md: was prefilled again meanwhile" in again
    assert "docs/b.md" in removed
    assert store["docs/a.md"].variants == ["raw"]
    assert kvtool.compress(store, recipe="kivi").compressed == ["docs/a.md"]


def test_progress_counts_what_was_there(store: LocalStore) -> None:
    kvtool.compress(store, ["c.txt"], recipe="kivi")
    seen: list[tuple[int, int]] = []

    def note(report: Report) -> None:
        seen.append((report.segments_done, report.segments_total))

    kvtool.compress(store, recipe="kivi", on_progress=note)
    assert seen == [(2, 3), (3, 3)]
    assert kvtool.compress(store, ["c.txt", "c.txt"], recipe="kivi").unchanged == ["c.txt"]


def test_the_report_as_json(store: LocalStore) -> None:
    store.path_of(store["docs/a.md"].segments[0].variants["raw"]).unlink()
    report = kvtool.compress(store, recipe="kivi")
    fields = report.to_json()
    assert json.loads(json.dumps(fields)) == fields
    assert (fields["variant"], fields["dry_run"]) == ("kivi", False)
    assert (fields["compressed"], fields["unchanged"]) == (["c.txt", "docs/b.md"], [])
    assert fields["bits_per_value"] == round(8 * report.nbytes / report.n_elements, 4)
    (problem,) = fields["problems"]
    assert problem == report.problems[0].to_json()
    assert problem["subject"] == "docs/a.md"


def test_a_model_is_loaded_only_where_it_is_needed(store: LocalStore, tiny: kvtool.Model) -> None:
    load = Mock(return_value=tiny)
    assert kvtool.compress(store, recipe="kivi", model=load).compressed == THREE
    assert load.call_count == 0
    assert kvtool.compress(store, recipe="zipcache", model=load).compressed == THREE
    assert load.call_count == 1


def test_a_plan_says_what_is_encoded_unchanged_and_refused(store: LocalStore) -> None:
    kvtool.compress(store, "c.txt", recipe="kivi")
    kvtool.compress(store, "docs/a.md", recipe="kivi", bits=4, name="kivi")
    pipeline = pipeline_of("kivi")
    job = Job("kivi", "raw", pipeline, {"name": "kivi", "pipeline": pipeline.to_config()})
    planned = plan(store, job, THREE)
    assert planned.segments("raw") == [SegmentRef("docs/b.md", 0)]
    assert list(planned.unchanged) == ["c.txt"]
    assert [error.subject for error in planned.refused] == ["docs/a.md"]
    assert (planned.segments_done, planned.segments_total) == (1, 2)
    again = plan(store, job, THREE, replace=True)
    assert again.segments("raw") == [SegmentRef("docs/a.md", 0), SegmentRef("docs/b.md", 0)]
    assert not again.refused
