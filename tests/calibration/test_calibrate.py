"""Calibrations from a store's documents and from texts, and compress, which makes one where there is none."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kvtool
from kvtool import calibrate
from kvtool.calibration import pieces
from kvtool.calibration.calibrate import default_tokens
from kvtool.calibration.learning import Progress
from kvtool.calibration.pieces import pieces_of_store, pieces_of_texts
from kvtool.calibration.samples import Samples
from kvtool.cli import app
from kvtool.codecs import Calibration, CodecError, Recipe, Sample
from kvtool.errors import FAILED, PARTLY, USAGE, MismatchError, StoreError, UsageError
from kvtool.model.fingerprint import file_tensors
from kvtool.store.local import LocalStore

THREE = ["c.txt", "docs/a.md", "docs/b.md"]
Cli = Callable[..., Any]


@pytest.fixture
def long(store: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """With a document of several segments beside the three, and pieces of 60 tokens at most."""
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 60)
    monkeypatch.setattr(pieces, "SHORTEST", 10)
    paragraphs = [f"Paragraph {n} is about the number {n}, and so on." for n in range(12)]
    Path("long.py").write_text("\n\n".join(paragraphs))
    kvtool.prefill(["long.py"], model=tiny, store=store, segment_tokens=150)
    return store


@pytest.fixture
def fitted_with(centred: Recipe, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """The plugin's recipe, changed."""

    def change(**fields: object) -> Recipe:
        changed = dataclasses.replace(centred, **fields)  # type: ignore[arg-type]
        monkeypatch.setattr(sys.modules["kvtool.calibration.calibrate"], "find_recipe", lambda _: changed)
        return changed

    return change


# Pieces


def test_pieces_are_spread_over_kinds_documents_and_segments(long: LocalStore, tiny: kvtool.Model) -> None:
    everything = pieces_of_store(long, None, tiny, 10**6)
    assert sum(len(piece.token_ids) for piece in everything) == sum(
        segment.n_tokens for document in long.values() for segment in document.segments
    )
    assert max(len(piece.token_ids) for piece in everything) <= 60
    # One of each kind comes first: .txt, .md and .py.
    assert {Path(piece.source).suffix for piece in everything[:3]} == {".txt", ".md", ".py"}
    assert {piece.source for piece in everything[:5]} == {*THREE, "long.py"}
    some = pieces_of_store(long, None, tiny, 200)
    assert sum(len(piece.token_ids) for piece in some) == 200
    assert [piece.source for piece in some] == [piece.source for piece in everything[: len(some)]]
    assert pieces_of_store(long, None, tiny, 200) == some
    assert pieces_of_store(long, None, tiny, 200, seed=1) != some
    own = pieces_of_store(long, ["docs/b.md"], tiny, 200)
    assert {piece.source for piece in own} == {"docs/b.md"}


def test_a_piece_is_what_the_store_holds_after_its_prefix(store: LocalStore, tiny: kvtool.Model) -> None:
    for piece in pieces_of_store(store, None, tiny, 10**6):
        *before, own = store.parts(piece.source)
        assert list(piece.token_ids) == own.token_ids.tolist()
        assert list(piece.prefix_ids) == torch.cat([part.token_ids for part in before]).tolist()


def test_what_documents_hold_alike_counts_once(store: LocalStore, tiny: kvtool.Model) -> None:
    Path("copy.txt").write_text(Path("c.txt").read_text())
    kvtool.prefill(["copy.txt"], model=tiny, store=store)
    found = [piece.source for piece in pieces_of_store(store, None, tiny, 10**6)]
    assert sorted(found) == THREE


def test_texts_stand_after_the_stores_prefix(store: LocalStore, tiny: kvtool.Model, tmp_path: Path) -> None:
    (piece,) = pieces_of_texts(["Some words."], store, tiny, 100)
    (own,) = pieces_of_store(store, ["c.txt"], tiny, 100)
    assert piece.prefix_ids == own.prefix_ids
    (alone,) = pieces_of_texts(["Some words."], LocalStore(tmp_path / "none"), tiny, 100)
    assert alone == piece
    other = LocalStore(tmp_path / "other")
    kvtool.prefill(["c.txt"], model=tiny, store=other, no_prefix=True)
    (bare,) = pieces_of_texts(["Some words."], other, tiny, 100)
    assert bare.prefix_ids == ()


# Samples


def test_samples_are_computed_once_and_kept_in_16_bits(store: LocalStore, tiny: kvtool.Model) -> None:
    done: list[int] = []
    pieces = pieces_of_store(store, None, tiny, 10**6)
    made = Samples(pieces, tiny, gradient_tokens=16_384, on_sample=lambda one: done.append(one.kv.n_tokens))
    assert (len(made), done) == (3, [])
    first = [sample.gradients for sample in made]
    assert all(gradients is not None for gradients in first)
    assert done == [len(piece.token_ids) for piece in pieces]
    for piece, sample in zip(pieces, made, strict=True):
        assert sample.gradients is None
        raw = store.read(piece.source)
        assert torch.equal(sample.kv.token_ids, raw.token_ids)
        assert sample.kv.rope == raw.rope
        for one, other in zip(sample.kv.layers, raw.layers, strict=True):
            assert one.keys.dtype == torch.float16
            assert torch.equal(one.positions, other.positions)
            assert (one.keys - other.keys).abs().max() < 1e-3 * other.keys.abs().max()
            assert (one.values - other.values).abs().max() < 1e-3 * other.values.abs().max()
    assert len(done) == 3
    assert [sample.kv.n_tokens for sample in made[1:]] == done[1:]
    assert made[-1].kv is made[2].kv
    with pytest.raises(IndexError):
        made[3]


def test_without_gradients_the_model_only_runs_forward(store: LocalStore, tiny: kvtool.Model) -> None:
    made = Samples(pieces_of_store(store, None, tiny, 10**6), tiny)
    assert [sample.gradients for sample in made] == [None] * 3
    assert made[0].kv.layers[0].keys.dtype == torch.float16


# Calibrating


@pytest.mark.usefixtures("centred")
def test_a_calibration_of_the_stores_documents(store: LocalStore, tiny: kvtool.Model) -> None:
    seen: list[Progress] = []
    made = calibrate(
        store, model=tiny, recipe="centred", on_progress=lambda p: seen.append(dataclasses.replace(p))
    )
    assert LocalStore(store.root).calibrations[made.digest] == made
    assert (made.method, made.model) == ("mean", tiny.fingerprint)
    tokens = sum(store.read(name).n_tokens for name in store)
    source = made.facts["source"]
    assert {**source, "text": ""} == {"tokens": tokens, "documents": 3, "text": ""}  # type: ignore[dict-item]
    values = torch.cat([store.read(name).layers[1].values for name in store], 1)
    assert (made.tensors["0001.values"] - values.mean(1)).abs().max() < 1e-3
    assert [p.tokens_total for p in seen] == [tokens] * 3
    assert seen[-1].tokens == tokens
    assert calibrate(store, model=tiny, recipe="centred").digest == made.digest
    assert kvtool.compress(store, recipe="centred").compressed == THREE
    assert store.open("c.txt", "centred").meta["calibrations"] == [made.digest]


@pytest.mark.usefixtures("centred")
def test_of_some_documents_or_of_texts_it_is_another(store: LocalStore, tiny: kvtool.Model) -> None:
    one = calibrate(store, "c.txt", model=tiny, recipe="centred")
    assert one.facts["source"]["documents"] == 1  # type: ignore[index,call-overload]
    text = calibrate(store, model=tiny, recipe="centred", texts=[Path("c.txt").read_text()])
    # The same text after the same prefix, by whichever way it comes.
    assert text == one
    assert calibrate(store, model=tiny, recipe="centred", texts=["Other words."]) != one
    assert len(store.calibrations) == 2


@pytest.mark.usefixtures("centred")
def test_texts_need_no_documents(tmp_path: Path, tiny: kvtool.Model) -> None:
    empty = LocalStore(tmp_path / "new")
    made = calibrate(empty, model=tiny, recipe="centred", texts="Some words.")
    assert list(LocalStore(tmp_path / "new").calibrations) == [made.digest]


def test_a_recipe_gets_gradients_and_embeddings_if_it_says_so(
    store: LocalStore, tiny: kvtool.Model, fitted_with: Callable[..., Recipe]
) -> None:
    given: dict[str, object] = {}

    def fit(found: Sequence[Sample], **options: object) -> Calibration:
        given.update(options, gradients=[sample.gradients is not None for sample in found])
        return Calibration("mean", {}, {})

    fitted_with(fit=fit)
    calibrate(store, model=tiny, recipe="centred")
    assert given == {"gradients": [False] * 3}
    fitted_with(fit=fit, gradients=True, embedding=True)
    calibrate(store, model=tiny, recipe="centred", rank=3)
    embedding = given.pop("embedding")
    assert isinstance(embedding, torch.Tensor)
    assert torch.equal(embedding, tiny.model.get_input_embeddings().weight)
    tensors = file_tensors(tiny.directory / "model.safetensors")
    assert given.pop("embedding_digest") == tensors["model.embed_tokens.weight"][2]
    assert given == {"gradients": [True] * 3, "rank": 3}


def test_what_fit_refuses_names_the_option(
    store: LocalStore, tiny: kvtool.Model, fitted_with: Callable[..., Recipe]
) -> None:
    def fit(found: Sequence[Sample]) -> Calibration:
        raise CodecError("centred: 90 tokens are too few, expected 500")

    fitted_with(fit=fit)
    message = r"expected 500. It was given \d+ tokens of 3 documents; raise --tokens.* --recipe kivi"
    with pytest.raises(UsageError, match=message):
        calibrate(store, model=tiny, recipe="centred")
    assert not store.calibrations


@pytest.mark.parametrize(("recipe", "needed"), [("klt", 16), ("kvtc", 16)])
def test_too_few_tokens_are_refused_with_the_number_needed(
    store: LocalStore, tiny: kvtool.Model, recipe: str, needed: int
) -> None:
    texts = ["x" * 145] if recipe == "kvtc" else ["Too few."]
    message = rf"{recipe}: \d+ tokens .* are too few, expected at least {needed}, .* It was given \d+ tokens of 1 document"
    with pytest.raises(UsageError, match=message):
        calibrate(store, model=tiny, recipe=recipe, texts=texts)
    assert not store.calibrations


@pytest.mark.usefixtures("centred")
@pytest.mark.parametrize("texts", ["docs", ["Words.", "c.txt"], [Path("c.txt")], Path("nowhere")])
def test_a_path_in_place_of_a_text_is_refused(store: LocalStore, tiny: kvtool.Model, texts: Any) -> None:
    with pytest.raises(UsageError, match="is a path, expected the text itself; read the file"):
        calibrate(store, model=tiny, recipe="centred", texts=texts)
    for text in ("Words.\0", "x" * 5000, "docs and other words"):
        assert calibrate(store, model=tiny, recipe="centred", texts=[text])


@pytest.mark.usefixtures("centred")
def test_bad_input(store: LocalStore, tiny: kvtool.Model, tmp_path: Path) -> None:
    empty = LocalStore(tmp_path / "none")
    for where, options, says in (
        (empty, {}, "none: is empty.*run kvtool prefill first, or give --text"),
        (store, {"recipe": "kivi"}, "--recipe kivi: takes no calibration; those that do: .*centred"),
        (store, {"recipe": "nothing"}, "nothing"),
        (store, {"tokens": 0}, "--tokens 0: expected at least 1"),
        (store, {"names": "c.txt", "texts": ["x"]}, "exclude each other"),
        (store, {"texts": ["", ""]}, "--text: has no tokens"),
    ):
        with pytest.raises(UsageError, match=says):
            calibrate(where, **{"model": tiny, "recipe": "centred", **options})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"z.md: is not in the store"):
        calibrate(store, "z.md", model=tiny, recipe="centred")
    assert not empty.root.exists()
    assert not store.calibrations


@pytest.mark.usefixtures("centred")
def test_documents_of_another_model(
    store: LocalStore, tiny: kvtool.Model, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    other = kvtool.load_model(make_model(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(MismatchError, match="made by another model: its weights"):
        calibrate(store, model=other, recipe="centred")
    Path("d.txt").write_text("Another model read this.\n")
    kvtool.prefill(["d.txt"], model=other, store=store)
    # Of all documents, those of the model count; one that is named must be of it.
    assert calibrate(store, model=other, recipe="centred").facts["source"]["documents"] == 1  # type: ignore[index,call-overload]
    assert calibrate(store, model=tiny, recipe="centred").facts["source"]["documents"] == 3  # type: ignore[index,call-overload]
    with pytest.raises(MismatchError, match="made by another model"):
        calibrate(store, ["c.txt", "d.txt"], model=other, recipe="centred")


# Compressing without one


@pytest.mark.usefixtures("centred")
def test_compress_makes_what_is_missing_and_says_so(
    store: LocalStore, tiny: kvtool.Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvtool")
    tokens = sum(store.read(name).n_tokens for name in store)
    assert kvtool.compress(store, recipe="centred", dry_run=True).compressed == THREE
    assert not store.calibrations
    # From all documents, whichever is compressed.
    assert kvtool.compress(store, "c.txt", recipe="centred", model=tiny).compressed == ["c.txt"]
    message = f"no calibration for tiny yet: making one from {tokens} tokens of the store's"
    assert caplog.text.count(message) == 1
    (made,) = store.calibrations.values()
    assert made == calibrate(store, model=tiny, recipe="centred")
    caplog.clear()
    assert len(kvtool.compress(store, recipe="centred", model=tiny).compressed) == 2
    assert "no calibration" not in caplog.text


@pytest.mark.usefixtures("centred")
def test_compress_makes_none_with_another_model(
    store: LocalStore, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    other = kvtool.load_model(make_model(tmp_path / "other", seed=1), device="cpu")
    message = r"'centred': needs a calibration for tiny .*, and other is .*--model tiny"
    with pytest.raises(MismatchError, match=message):
        kvtool.compress(store, recipe="centred", model=other)
    assert not store.calibrations


# The command


@pytest.fixture
def cli(corpus: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("KVTOOL_MODEL", str(tiny_dir))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")

    def cli(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        return result

    return cli


@pytest.mark.usefixtures("centred")
def test_the_command_prints_what_it_made(cli: Cli, store: LocalStore) -> None:
    result = cli("calibrate", "--recipe", "centred")
    (made,) = LocalStore(store.root).calibrations.values()
    assert result.stdout == f"{made.digest}\n"
    assert "the model has run" in result.stderr
    assert "mean: calibrated tiny from" in result.stderr
    found = json.loads(cli("calibrate", "c.txt", "--recipe", "centred", "--tokens", "20", "--json").stdout)
    made = store.calibrations[found["digest"]]
    assert Path(found["file"]).read_bytes() == made.to_bytes()
    assert (found["method"], found["tokens"], found["documents"]) == ("mean", 20, 1)
    assert (found["bytes"], found["problems"], found["warnings"]) == (made.nbytes, [], [])
    assert found["model"]["fingerprint"] == made.model
    assert found["seconds"] > 0


@pytest.mark.usefixtures("centred")
def test_the_command_takes_texts(cli: Cli, store: LocalStore) -> None:
    Path("more").mkdir()
    Path("more/x.md").write_text("Words of another kind.\n")
    report = cli("calibrate", "--recipe", "centred", "--text", "more", "--json").stdout
    assert json.loads(report)["documents"] == 1
    result = cli("calibrate", "--recipe", "centred", "--text", "more", "--text", "gone.md", code=PARTLY)
    assert "gone.md" in result.stderr
    assert "gone.md" in cli("calibrate", "--recipe", "centred", "--text", "gone.md", code=FAILED).stderr
    assert "takes no calibration" in cli("calibrate", "--recipe", "kivi", code=USAGE).stderr


@pytest.mark.usefixtures("centred")
def test_the_command_compress_makes_one_first(cli: Cli, store: LocalStore) -> None:
    dry = cli("compress", "--recipe", "centred", "--dry-run")
    assert dry.stdout.split() == THREE
    assert not store.calibrations
    result = cli("compress", "--recipe", "centred")
    assert result.stderr.count("no calibration for tiny yet") == 1
    assert "centred: compressed 3 documents" in result.stderr
    assert len(store.calibrations) == 1
    assert "no calibration" not in cli("compress", "--recipe", "centred", "--name", "again").stderr


def test_larger_models_are_calibrated_from_more_tokens(tiny: kvtool.Model) -> None:
    def tokens(**sizes: int) -> int:
        config = SimpleNamespace(hidden_size=4096, num_attention_heads=32, **sizes)
        return default_tokens(SimpleNamespace(text_config=config))  # type: ignore[arg-type]

    assert default_tokens(tiny) == 16_384
    assert tokens(num_hidden_layers=32, num_key_value_heads=8) == 32_768
    assert tokens(num_hidden_layers=80, num_key_value_heads=8, head_dim=128) == 26_214
    assert tokens() == 16_384
