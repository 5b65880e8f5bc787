"""A store's calibrations: written like artifacts, checked whole, found by digest, and missed by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kvtool
from kvtool.artifact.read import Artifact
from kvtool.artifact.reading import BrokenArtifact
from kvtool.artifact.write import Content, serialize
from kvtool.cli import app
from kvtool.codecs import Calibration, Recipe, Sample
from kvtool.compression import workers
from kvtool.digest import canonical_json
from kvtool.errors import GATE, ArtifactError, MismatchError, StoreError, UsageError
from kvtool.store.calibrations import BrokenCalibration
from kvtool.store.local import LocalStore
from tests.store.conftest import aged, simple

THREE = ["c.txt", "docs/a.md", "docs/b.md"]


@pytest.fixture
def calibration(store: LocalStore, tiny: kvtool.Model, centred: Recipe) -> Calibration:
    """The plugin's, of the tiny model."""
    return fitted(centred, store, tiny.fingerprint, "docs/a.md", "docs/b.md")


def fitted(recipe: Recipe, store: LocalStore, model: str, *names: str) -> Calibration:
    assert recipe.fit
    return recipe.fit([Sample(store.read(name)) for name in names]).made(model=model, source=list(names))


# Compressing


def test_compress_takes_the_newest_that_fits(
    store: LocalStore, tiny: kvtool.Model, centred: Recipe, calibration: Calibration
) -> None:
    old = fitted(centred, store, tiny.fingerprint, "c.txt")
    others = [calibration.made(model="0" * 64, source=None), simple(method="klt", model=tiny.fingerprint)]
    aged(store, old, calibration, *others)
    report = kvtool.compress(store, recipe="centred", bits=8)
    assert report.compressed == THREE
    assert report.nbytes == sum(store.size(name, "centred") for name in store)
    opened = LocalStore(store.root).open("c.txt", "centred")
    assert opened.meta["calibrations"] == [calibration.digest]
    assert opened.contents.pipeline.calibrations == (calibration,)
    raw, back = store.read("c.txt"), LocalStore(store.root).read("c.txt", "centred")
    for one, other in zip(raw.layers, back.layers, strict=True):
        assert (one.keys - other.keys).abs().max() < 0.05
    cache = LocalStore(store.root).load("c.txt", tiny, "centred")
    assert cache.get_seq_length() == len(cache.token_ids)
    # Made with another one it is another artifact, under a name of its own.
    assert kvtool.compress(store, recipe="centred", bits=8).unchanged == THREE
    report = kvtool.compress(store, recipe="centred", bits=8, calibration=old.digest, name="old")
    assert report.compressed == THREE
    one, other = (store.open("c.txt", variant).meta["identity"] for variant in ("centred", "old"))
    assert one != other
    report = kvtool.compress(store, recipe="centred", bits=8, calibration=old)
    assert all("made otherwise" in str(problem) for problem in report.problems)


def test_a_calibration_that_is_given_is_stored_first(store: LocalStore, calibration: Calibration) -> None:
    assert kvtool.compress(store, recipe="centred", calibration=calibration, dry_run=True).compressed == THREE
    assert not store.calibrations
    kvtool.compress(store, recipe="centred", calibration=calibration)
    assert list(store.calibrations) == [calibration.digest]
    # Lost and given again, it is there again, though nothing is to be compressed.
    store.calibrations.discard(calibration.digest)
    assert kvtool.compress(store, recipe="centred", calibration=calibration).unchanged == THREE
    assert store.read("c.txt", "centred").n_tokens


def test_one_side_may_be_calibrated(store: LocalStore, calibration: Calibration) -> None:
    kvtool.compress(store, recipe="kivi", keys="centred:3", calibration=calibration, name="mixed")
    pipeline = store.open("c.txt", "mixed").contents.pipeline
    assert [stage.name for stage in pipeline.keys] == ["centred", "group", "pack"]
    assert pipeline.calibrations == (calibration,)


@pytest.mark.usefixtures("centred")
def test_without_a_calibration_nothing_is_compressed(store: LocalStore, tiny: kvtool.Model) -> None:
    with pytest.raises(UsageError, match=r"'centred': needs a calibration .*'mean'.* run kvtool calibrate"):
        kvtool.compress(store, recipe="centred")
    with pytest.raises(UsageError, match=f"calibration {'0' * 64}: is not in the store .*; it has: none"):
        kvtool.compress(store, recipe="centred", calibration="0" * 64)
    with pytest.raises(UsageError, match=r"'centred'.*of method 'klt', expected one of 'mean'"):
        kvtool.compress(store, recipe="centred", calibration=simple(method="klt", model=tiny.fingerprint))
    with pytest.raises(UsageError, match="'kivi' takes none"):
        kvtool.compress(store, recipe="kivi", calibration=simple())
    assert all(document.variants == ["raw"] for document in store.values())
    assert not store.calibrations


@pytest.mark.usefixtures("centred")
def test_a_document_that_is_not_there_is_named_before_a_calibration_is_missed(
    store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"docs/z.md: is not in the store"):
        kvtool.compress(store, "docs/z.md", recipe="centred")
    assert kvtool.compress(LocalStore(tmp_path / "none"), recipe="centred").documents_total == 0


def test_a_calibration_of_another_model_is_refused(store: LocalStore, calibration: Calibration) -> None:
    for model in ("0" * 64, ""):
        wrong = calibration.made(model=model, source=None)
        report = kvtool.compress(store, recipe="centred", calibration=wrong)
        assert len(report.problems) == 3
        with pytest.raises(MismatchError, match=f"c.txt: was prefilled with .*calibration {wrong.digest}"):
            kvtool.compress(store, "c.txt", recipe="centred", calibration=wrong)
    assert all(document.variants == ["raw"] for document in store.values())
    assert not store.calibrations


def test_documents_of_several_models_want_to_be_named(
    store: LocalStore, tmp_path: Path, make_model: Callable[..., Path], calibration: Calibration
) -> None:
    other = kvtool.load_model(make_model(tmp_path / "other", seed=1), device="cpu")
    Path("d.txt").write_text("Another model read this.\n")
    kvtool.prefill(["d.txt"], model=other, store=store)
    store.put_calibration(calibration)
    with pytest.raises(UsageError, match="several models"):
        kvtool.compress(store, recipe="centred")
    assert kvtool.compress(store, THREE, recipe="centred").compressed == THREE
    report = kvtool.compress(store, recipe="centred", calibration=calibration)
    assert report.unchanged == THREE
    assert ["d.txt: was prefilled with" in str(problem) for problem in report.problems] == [True]


def test_what_an_interrupted_run_left_is_taken_up(
    store: LocalStore, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtool.compress(store, "c.txt", recipe="centred", calibration=calibration)
    (segment,) = store["c.txt"].segments
    raw = replace(segment, variants={"raw": segment.variants["raw"]})
    store.commit(replace(store["c.txt"], segments=(raw,)))
    monkeypatch.setattr(workers, "encode_segment", lambda *_: pytest.fail("encoded again"))
    assert kvtool.compress(LocalStore(store.root), "c.txt", recipe="centred").compressed == ["c.txt"]


@pytest.mark.slow
def test_processes_find_the_calibration_in_the_store(
    store: LocalStore, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtool.compress(store, recipe="centred", calibration=calibration, name="here")
    for document in store.values():
        store.discard(document.segments[0].variants["here"])
    monkeypatch.setattr(workers, "WORTH_SECONDS", 0)
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    processes: list[object] = []
    start = workers._encode_in_processes
    monkeypatch.setattr(workers, "_encode_in_processes", lambda *a: processes.append(a) or start(*a))
    report = kvtool.compress(store, recipe="centred", name="there")
    assert processes
    assert sorted(report.compressed) == THREE
    for document in store.values():
        variants = document.segments[0].variants
        assert variants["here"].artifact == variants["there"].artifact


@pytest.mark.slow
def test_a_calibration_that_a_process_cannot_read_is_said(
    store: LocalStore, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WORTH_SECONDS", 0)
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    taken = []  # type: ignore[var-annotated]

    def takes(report: object) -> None:
        if not taken:
            taken.append(store.calibrations.path_of(calibration.digest).unlink())

    report = kvtool.compress(store, recipe="centred", calibration=calibration, on_progress=takes)
    assert report.compressed == ["c.txt"]
    assert [f"needs calibration {calibration.digest}" in str(p) for p in report.problems] == [True, True]


# Artifacts that name one


def test_without_its_calibration_an_artifact_is_refused_and_the_store_works(
    store: LocalStore, tiny: kvtool.Model, calibration: Calibration
) -> None:
    kvtool.compress(store, recipe="centred", calibration=calibration)
    store.calibrations.path_of(calibration.digest).unlink()
    opened = LocalStore(store.root)
    path = opened.path_of(opened["c.txt"].segments[0].variants["centred"])
    says = rf"{path}: needs calibration {calibration.digest}.*copy it.*compress again"
    for read in (
        lambda: opened.read("c.txt", "centred"),
        lambda: opened.open("c.txt", "centred"),
        lambda: opened.load("c.txt", tiny, "centred"),
    ):
        with pytest.raises(ArtifactError, match=says) as caught:
            read()
        assert not isinstance(caught.value, BrokenArtifact)
    assert opened.read("c.txt").n_tokens
    root = str(store.root)
    runner = CliRunner()
    assert "centred" in runner.invoke(app, ["ls", "--store", root]).stdout
    verified = runner.invoke(app, ["verify", "--remove", "--store", root])
    assert verified.exit_code == GATE
    assert f"needs calibration {calibration.digest}" in verified.stderr
    assert path.exists(), "what is merely without its calibration is not broken"
    assert runner.invoke(app, ["gc", "--store", root]).exit_code == 0
    assert path.exists()
    assert calibration.digest in runner.invoke(app, ["show", "c.txt", "--store", root]).stderr
    assert kvtool.compress(opened, recipe="kivi").compressed == THREE
    opened.put_calibration(calibration)
    assert opened.read("c.txt", "centred").n_tokens
    store.calibrations.path_of(calibration.digest).unlink()
    assert runner.invoke(app, ["rm", "c.txt", "--store", root]).exit_code == 0
    assert not path.exists()


def test_a_broken_calibration_does_not_make_artifacts_broken(
    store: LocalStore, calibration: Calibration
) -> None:
    kvtool.compress(store, recipe="centred", calibration=calibration)
    path = store.calibrations.path_of(calibration.digest)
    path.write_bytes(path.read_bytes()[:-1])
    artifacts = sorted((store.root / "artifacts").rglob("*.safetensors"))
    with pytest.raises(BrokenCalibration, match=str(path)):
        LocalStore(store.root).read("c.txt", "centred")
    result = CliRunner().invoke(app, ["verify", "--json", "--remove", "--store", str(store.root)])
    assert result.exit_code == GATE
    report = json.loads(result.stdout)
    assert report["removed"] == [calibration.digest]
    assert calibration.digest in report["broken"]
    assert len(report["broken"]) == 4
    assert not path.exists()
    assert sorted((store.root / "artifacts").rglob("*.safetensors")) == artifacts
    assert (
        kvtool.compress(LocalStore(store.root), recipe="centred", calibration=calibration).unchanged == THREE
    )
    assert CliRunner().invoke(app, ["verify", "--store", str(store.root)]).exit_code == 0


def test_gc_keeps_calibrations(store: LocalStore, calibration: Calibration) -> None:
    kvtool.compress(store, recipe="centred", calibration=calibration)
    for name in THREE:
        store.remove(name)
    assert store.collect()
    assert list(store.calibrations) == [calibration.digest]


def test_show_and_verify_name_them(store: LocalStore, calibration: Calibration) -> None:
    kvtool.compress(store, recipe="centred", calibration=calibration)
    kvtool.compress(store, recipe="centred", bits=8, name="fine")
    runner, root = CliRunner(), str(store.root)
    shown = json.loads(runner.invoke(app, ["show", "c.txt", "--json", "--store", root]).stdout)
    path = store.calibrations.path_of(calibration.digest)
    assert shown["calibrations"] == [
        {
            "digest": calibration.digest,
            "method": "mean",
            "file": str(path),
            "bytes": path.stat().st_size,
            "variants": ["centred", "fine"],
        }
    ]
    lines = runner.invoke(app, ["show", "c.txt", "--store", root]).stdout.splitlines()
    (line,) = [line for line in lines if "calibration mean" in line]
    assert f"{calibration.nbytes:,} bytes" in line
    assert "(here centred, fine)" in line
    verified = json.loads(runner.invoke(app, ["verify", "--json", "--store", root]).stdout)
    assert verified == {"intact": 11, "broken": {}, "removed": [], "outdated": {}}


def test_compress_takes_a_digest(store: LocalStore, centred: Recipe, calibration: Calibration) -> None:
    aged(store, calibration, fitted(centred, store, calibration.model, "c.txt"))
    arguments = f"compress --recipe centred --calibration {calibration.digest} --store".split()
    assert CliRunner().invoke(app, [*arguments, str(store.root)]).exit_code == 0
    assert store.open("c.txt", "centred").meta["calibrations"] == [calibration.digest]


@pytest.mark.parametrize("named", [[], ["0" * 64], None], ids=["none", "another", "no list"])
def test_an_artifact_names_the_calibrations_of_its_pipeline(
    store: LocalStore, calibration: Calibration, named: list[str] | None
) -> None:
    kvtool.compress(store, "c.txt", recipe="centred", calibration=calibration)
    opened = store.open("c.txt", "centred")
    meta = json.loads(canonical_json(opened.meta)) | {"calibrations": named}
    del meta["digest"]
    tensors = {name: opened.read(name) for name in opened.entries if name in opened.meta["tensors"]}
    _, chunks = serialize(Content(tensors, meta))
    path = store.root / "forged.safetensors"
    path.write_bytes(b"".join(chunks))
    with pytest.raises(ArtifactError, match="calibrations are not those that its pipeline names"):
        Artifact.open(path, calibrations=store.calibrations)


@pytest.mark.usefixtures("centred")
def test_recipes_are_listed_that_need_one() -> None:
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)}
    assert rows["centred"]["needs"] == ["calibration"]
    assert rows["centred"]["nominal_bits"] is None
    assert "centred" in CliRunner().invoke(app, ["recipes"]).stdout
