"""The embedded model: real attention, thirty layers, three kinds of document."""

from __future__ import annotations

import copy
import csv
import inspect
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

import kvtool
from kvtool.engines.kv import slice_kv
from kvtool.engines.prefiller import Prefiller
from kvtool.model.chat_template import document_tokens, prefix_of, question_tokens
from tests.caches import differences, full_prefill

pytestmark = pytest.mark.slow

# The largest difference in float32, relative to the largest element of a layer's keys or values.
PACKED_BOUND = 1e-5  # measured: 2.9e-6
STEPPED_BOUND = 1e-5  # measured: 3.3e-6
# KL in nats per token, of the raw cache against kivi's at 8 bits.
KIVI_BOUND = 1.1e-5  # measured: 3.7e-6

PROSE = """\
The harbour at Wenlow was built twice. The first wall, of rubble and lime, stood for eleven winters before the
sea took it on a night in February; the second was designed by Agnes Thorold, who had watched the first one fall
from the window of the customs house and had counted the waves. She wrote in her notebook that every seventh was
no larger than the others, whatever the fishermen said, but that three large ones in a row were enough to lift
the capstones, and that the water which ran back between them did the rest. Her wall was therefore hollow. It let
the sea in through forty arches and gave it somewhere to go.

The council thought the arches a waste of stone. They were persuaded by a model, twelve feet long, which she had
her brother build in a horse trough behind the inn. When the trough was rocked, the solid wall fell over and the
hollow one did not. The minutes record that the mayor rocked it himself, four times, and was wet to the knees.

Work began in the spring of the following year with granite from the quarry at Hessle, nine miles up the coast.
It came by barge, because the road could not bear it. Each block was numbered in red paint at the quarry, and a
boy called Simeon Pike, who could not read, had learned the shapes of the numbers and called them out to the
masons as the barges came round the point. Of two thousand and sixteen blocks he called three wrongly, and those
three were found by Thorold on a Sunday walk and taken out again on the Monday.

The wall was closed in the sixth year. There was a storm that same week, as there always is in such accounts, and
the town went out with lanterns to watch. The water came through the arches with the noise of a train, stood for a
moment in the basin behind, and drained away. Thorold was not there: she had gone to bed. Asked about it later, she
said that she had rocked the trough more often than the mayor had.
"""


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows = "\n".join(
        f"| {year} | {name} | {year % 7 + 2} | {(year * 37) % 911 / 10:.1f} |"
        for year, name in zip(
            range(1961, 1991), ["Ash", "Birch", "Cedar", "Elm", "Fir", "Oak"] * 5, strict=True
        )
    )
    head = "# Timber, by year\n\n| year | kind | yards | thousand tons |\n| --- | --- | --- | --- |\n"
    root = tmp_path_factory.mktemp("documents")
    (root / "docs").mkdir()
    (root / "docs/prose.md").write_text(PROSE)
    (root / "docs/sniffer.txt").write_text(inspect.getsource(csv.Sniffer._guess_delimiter))
    (root / "docs/table.md").write_text(f"{head}{rows}\n")
    return root / "docs"


@pytest.fixture(scope="module")
def store(embedded: kvtool.Model, documents: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = kvtool.Store(tmp_path_factory.mktemp("store") / "s")
    kvtool.prefill([documents], model=embedded, store=store)
    kvtool.compress(store, recipe="lossless")
    kvtool.compress(store, recipe="kivi", name="kivi8", bits=8)
    return store


NAMES = pytest.mark.parametrize("name", ["docs/prose.md", "docs/sniffer.txt", "docs/table.md"])


def asked(model: kvtool.Model, cache: Any, question: Any = "What is described here? Give an example.") -> Any:
    ids = question_tokens(model, prefix_of(model), question)
    return torch.cat([cache.token_ids[None], torch.tensor([ids])], 1)


@NAMES
def test_greedy_generation_equals_that_after_plain_prefill(
    name: str, embedded: kvtool.Model, store: kvtool.Store
) -> None:
    cache = store.load(name, embedded)
    assert 300 <= store.read(name).n_tokens <= 1000
    ids = asked(embedded, cache)
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    plain = embedded.model.generate(ids, **options)
    assert torch.equal(embedded.model.generate(ids, past_key_values=cache, **options), plain)
    if name == "docs/table.md":  # one is enough: the bits of all are compared below
        lossless = store.load(name, embedded, variant="lossless")
        assert torch.equal(embedded.model.generate(ids, past_key_values=lossless, **options), plain)


@NAMES
def test_lossless_is(name: str, store: kvtool.Store) -> None:
    raw, lossless = store.read(name), store.read(name, variant="lossless")
    assert max(differences(lossless, raw)) == 0
    assert store.size(name, variant="lossless") < store.size(name)


@NAMES
@torch.no_grad()
def test_kivi_at_8_bits_gives_nearly_the_same_logits(
    name: str, embedded: kvtool.Model, store: kvtool.Store
) -> None:
    raw, kivi = store.load(name, embedded), store.load(name, embedded, variant="kivi8")
    ids = asked(embedded, raw)[:, len(raw.token_ids) :]
    logits = [embedded.model(ids, past_key_values=cache).logits[0].double() for cache in (raw, kivi)]
    p, q = (log_softmax(each, -1) for each in logits)
    kl = float(kl_div(q, p, log_target=True, reduction="batchmean"))
    print(f"{name}: KL {kl:.2e}")
    assert 0 < kl < KIVI_BOUND
    assert torch.equal(p.argmax(-1), q.argmax(-1))


@pytest.fixture(scope="module")
def whole(embedded: kvtool.Model, documents: Any) -> Any:
    """Each document's tokens, and its KV as a plain forward over the prefix and them makes it."""
    prefix = prefix_of(embedded).token_ids
    result = []
    for path in sorted(documents.iterdir()):
        ids = document_tokens(embedded, path.read_text())
        cache = full_prefill(embedded, [*prefix, *ids])
        result.append((ids, slice_kv(embedded, cache, len(prefix), ids, len(prefix))))
    return result


def test_packed_equals_plain(embedded: kvtool.Model, whole: Any) -> None:
    made = Prefiller(embedded, prefix_of(embedded).token_ids)
    kvs = made.many([ids for ids, _ in whole])
    assert made._packs
    largest = max(max(differences(kv, plain)) for kv, (_, plain) in zip(kvs, whole, strict=True))
    print(f"packed: {largest:.2e}")
    assert largest < PACKED_BOUND


def test_stepped_equals_plain(embedded: kvtool.Model, whole: Any) -> None:
    step = 150
    made = Prefiller(embedded, prefix_of(embedded).token_ids, step=step)
    largest = max(max(differences(made.one(ids), plain)) for ids, plain in whole)
    print(f"steps of {step}: {largest:.2e}")
    assert largest < STEPPED_BOUND


def test_questions_in_turn_over_one_cache(embedded: kvtool.Model, store: kvtool.Store) -> None:
    """As a server does it: a copy for every question, the document's own cache untouched."""
    cache = store.load("docs/prose.md", embedded)
    for question in ("Who designed the second wall?", "Where did the granite come from?"):
        ids = asked(embedded, cache, question)
        options = {"max_new_tokens": 8, "do_sample": False}
        answer = embedded.model.generate(ids, past_key_values=copy.deepcopy(cache), **options)
        assert torch.equal(answer, embedded.model.generate(ids, **options))
