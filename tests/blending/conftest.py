"""Tiny models, stores of a few documents as blending needs them, and the inputs of policies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DeepseekV3Config, DeepseekV3ForCausalLM

import kvtool
from kvtool.blending.layer_loader import LayerLoader, empty_cache
from kvtool.blending.layout import lay_out
from kvtool.blending.policy_inputs import USUAL_QUESTION, PolicyInputs
from kvtool.engines.capabilities import key_rotations
from kvtool.model.chat_template import prefix_of, question_tokens
from kvtool.store.local import LocalStore
from kvtool.system.trace import Trace
from tests.families import LATENT, SIZES

TEXTS = {
    "a.txt": "The harbour lies to the north of the town, and seven ships are in it.\n",
    "b.txt": "A loaf of rye bread costs three crowns at the baker's behind the mill.\n",
    "c@home.txt": "Keys and values of every token are kept, layer by layer.\n",
    "long.txt": "\n\n".join(
        f"Paragraph {n} of the long document tells of the years that ended in {n}." for n in "123"
    ),
}
SEGMENT_TOKENS = 80
"""A token is a byte: what lets only the long document have several segments, of one paragraph each."""

QUESTION = "How many ships are in the harbour?"


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    return TEXTS


@pytest.fixture(scope="session")
def lively_dir(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "lively"
    return make_model(directory, num_hidden_layers=4, initializer_range=0.3, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def lively(lively_dir: Path) -> kvtool.Model:
    """Weights so large that attention looks somewhere in particular."""
    return kvtool.load_model(lively_dir, device="cpu")


@pytest.fixture(scope="session")
def latent(lively_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """A deepseek-v3, of which transformers keeps the latents as keys and what is rotated as values."""
    directory = tmp_path_factory.mktemp("models") / "latent"
    torch.manual_seed(0)
    tokens = {"vocab_size": 272, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
    config = DeepseekV3Config(**SIZES | LATENT | tokens)
    DeepseekV3ForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(lively_dir).save_pretrained(directory)
    return kvtool.load_model(directory, device="cpu")


@pytest.fixture(scope="session")
def prefill_texts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LocalStore]:
    """A new store of ``TEXTS`` by a model, by default under a prefix of several tokens."""

    def make(model: kvtool.Model, **options: object) -> LocalStore:
        folder = tmp_path_factory.mktemp("documents")
        for name, text in TEXTS.items():
            (folder / name).write_text(text)
        store = LocalStore(folder / "kv-store")
        options = {"system": "Be brief.", "segment_tokens": SEGMENT_TOKENS} | options
        report = kvtool.prefill([folder / name for name in TEXTS], model=model, store=store, **options)
        assert not report.problems
        return store

    return make


@pytest.fixture(scope="session")
def documents(lively: kvtool.Model, prefill_texts: Callable[..., LocalStore]) -> LocalStore:
    """``TEXTS``, and variant kivi of them; not to be written to."""
    store = prefill_texts(lively)
    kvtool.compress(store, recipe="kivi", bits=8)
    return store


@pytest.fixture(scope="session")
def prepared(lively: kvtool.Model, prefill_texts: Callable[..., LocalStore]) -> LocalStore:
    """The same, made for blending too: averaged, and kivi-averaged; not to be written to."""
    store = prefill_texts(lively, neighbours=2)
    kvtool.compress(store, recipe="kivi", bits=8)
    kvtool.compress(store, recipe="kivi", bits=8, source="averaged")
    return store


@pytest.fixture
def copied(documents: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of ``documents`` that may be broken."""
    return LocalStore(shutil.copytree(documents.root, tmp_path / "copied"))


@pytest.fixture(scope="session")
def inputs_of() -> Callable[..., PolicyInputs]:
    """The inputs of a blend whose caches are all in place. ``question`` is the one that follows, if there is one."""

    def make(
        store: LocalStore,
        names: object,
        model: kvtool.Model,
        *,
        budget: int = 12,
        question: str | None = None,
    ) -> PolicyInputs:
        layout = lay_out(store, names, model)
        rotations = key_rotations(model)
        assert rotations is not None
        cache, trace = empty_cache(layout), Trace()
        with LayerLoader(layout, rotations, cache, trace) as loader:
            loader.wait_for_all()
        asked, usual = (
            torch.tensor(question_tokens(model, prefix_of(model), text))
            for text in (question or "", USUAL_QUESTION)
        )
        questions = [] if question is None else [asked]
        return PolicyInputs(model, layout, cache, loader, budget, questions, usual, trace)

    return make
