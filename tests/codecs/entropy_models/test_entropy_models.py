"""Probability models: any side bytes are tables or refused, good tables are nearly free, and none ever changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.codecs.entropy_models import MODELS, Corrected, Model, Parametric, Shared, Tables, precision
from kvtool.codecs.entropy_models.model import Floats, Ints, cost, shares
from kvtool.codecs.entropy_models.shapes import ONE, SCALES, STEPS, WIDTH, inverse_scales, shapes
from kvtool.codecs.errors import CodecError

SIZES = [(3, 15, 100), (1, 2, 5), (5, 31, 64), (2, 256, 1000), (1, 1, 3), (4, 65, 1), (2, 5, 0), (0, 7, 9)]

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)


def assert_tables(tables: Tables, rows: int, levels: int) -> None:
    assert tables.table.shape == (rows,)
    assert np.isin(tables.table, np.arange(len(tables.shares))).all()
    assert tables.shares.shape[1] == levels
    assert (tables.shares >= 1).all()
    assert (tables.shares.sum(1) == 1 << precision(levels)).all()
    assert (np.diff(tables.cumulative, axis=1) == tables.shares).all()


def count(codes: Ints, levels: int) -> Ints:
    return np.stack([np.bincount(row, minlength=levels) for row in codes])


def random_counts(rows: int, levels: int, tokens: int) -> Ints:
    """From rows that hold one code alone to rows that hold all alike."""
    generator = np.random.default_rng(levels)
    widths = np.linspace(0, 1, rows)[:, None] * levels
    codes = np.floor(generator.random((rows, tokens)) * widths).astype(np.int64)
    return count(codes, levels) if rows else np.zeros((0, levels), np.int64)


def bell_counts(kind: str, rows: int, levels: int, tokens: int) -> Ints:
    """Rows of standard deviations of an eighth of the levels, near the middle."""
    generator = np.random.default_rng(5)
    shapes: dict[str, Callable[[], np.ndarray]] = {
        "normal": lambda: generator.normal(size=(rows, tokens)),
        "logistic": lambda: generator.logistic(size=(rows, tokens)) * 3**0.5 / math.pi,
        "laplace": lambda: generator.laplace(size=(rows, tokens)) / 2**0.5,
        "two humps": lambda: (
            0.5 * generator.normal(size=(rows, tokens)) + generator.choice([-1.2, 1.0], (rows, tokens))
        ),
        "flat": lambda: generator.uniform(-2.5, 2.5, (rows, tokens)),
    }
    z = shapes[kind]()
    mean, spread = generator.uniform(0.4, 0.6, (rows, 1)), generator.uniform(0.1, 0.15, (rows, 1))
    return count(np.rint(levels * (mean + spread * z)).clip(0, levels - 1).astype(np.int64), levels)


def entropy(counts: Ints) -> float:
    """Bits that codes so counted take at least, if each row's frequencies were known for nothing."""
    n = counts.sum(1, keepdims=True)
    return float(-(counts * np.log2(np.where(counts, counts, n) / n)).sum())


def bits(model: Model, counts: Ints, tokens: int) -> float:
    """What codes so counted take under a model, its side bytes included."""
    side = model.fit(counts, tokens)
    rows, levels = counts.shape
    tables = model.tables(side, rows, levels, tokens)
    return float(cost(counts, tables.shares[tables.table]).sum()) + 8 * len(side)


@each_model
@pytest.mark.parametrize(("rows", "levels", "tokens"), SIZES)
def test_what_is_fitted_describes_tables(model: Model, rows: int, levels: int, tokens: int) -> None:
    counts = random_counts(rows, levels, tokens)
    side = model.fit(counts, tokens)
    assert len(side) <= model.nbytes(rows, levels, tokens)
    assert side == model.fit(counts, tokens)
    tables = model.tables(side, rows, levels, tokens)
    assert_tables(tables, rows, levels)
    assert np.array_equal(tables.shares, model.tables(side, rows, levels, tokens).shares)


@each_model
@given(data=st.data())
@settings(max_examples=100)
def test_any_side_bytes_are_tables_or_refused(model: Model, data: st.DataObject) -> None:
    rows, levels, tokens = data.draw(st.sampled_from(SIZES))
    fitted = model.fit(random_counts(rows, levels, tokens), tokens)
    # As many bytes as there should be, all of them, or those of the first parts alone, at random.
    n = data.draw(st.sampled_from([len(fitted), 2 * rows, 1, 0]))
    side = data.draw(st.binary(min_size=n, max_size=n)) + fitted[n:]
    if isinstance(model, Corrected) and n > 2 * rows:
        # Most coded corrections are refused, since they must end where they were begun.
        try:
            assert_tables(model.tables(side, rows, levels, tokens), rows, levels)
        except CodecError:
            return
    else:
        assert_tables(model.tables(side[: len(fitted)], rows, levels, tokens), rows, levels)


@each_model
@pytest.mark.parametrize(("rows", "levels", "tokens"), SIZES)
def test_other_lengths_are_refused(model: Model, rows: int, levels: int, tokens: int) -> None:
    side = model.fit(random_counts(rows, levels, tokens), tokens)
    for wrong in (*(side[:n] for n in range(len(side))), side + b"\0", side + side + b"\0\0"):
        with pytest.raises(CodecError, match=r"bytes"):
            model.tables(wrong, rows, levels, tokens)


@given(weights=st.lists(st.integers(0, (1 << 40) - 1), min_size=1, max_size=256).filter(any))
def test_shares_follow_weights(weights: list[int]) -> None:
    found = shares(np.array([weights, weights[::-1]]), 1 << precision(len(weights)))
    assert_tables(Tables(found, np.arange(2)), 2, len(weights))
    total = 1 << precision(len(weights))
    ideal = np.array(weights) / sum(weights) * total
    # Each gets one for nothing, which is taken from all by their weights.
    assert (found[0] >= np.floor(ideal * (1 - len(weights) / total))).all()
    largest = np.argmax(weights)
    assert (np.delete(found[0] - ideal, largest) <= 1).all()


@pytest.mark.parametrize("levels", [15, 16, 31, 64])
@pytest.mark.parametrize("kind", ["normal", "logistic", "laplace"])
@pytest.mark.parametrize(("tokens", "most"), [(256, 1.045), (4096, 1.006)])
def test_parametric_takes_little_more_than_entropy_on_its_own_shapes(
    kind: str, levels: int, tokens: int, most: float
) -> None:
    counts = bell_counts(kind, 64, levels, tokens)
    side = Parametric().fit(counts, tokens)
    assert len(side) == 2 * 64
    # Frequencies counted over few tokens fit them better than what they were drawn from.
    assert 1 < (bits(Parametric(), counts, tokens) - 8 * len(side)) / entropy(counts) < most


def test_parametric_is_not_misled_by_what_lies_far_off() -> None:
    codes = np.rint(15 + np.random.default_rng(6).normal(size=(16, 4096))).astype(np.int64)
    codes[:, :20], codes[:, 20:40] = 0, 30
    # They treble the variance: a curve as wide as that takes 1.08 times the entropy.
    assert codes.var() > 3
    counts = count(codes, 31)
    assert bits(Parametric(), counts, 4096) < 1.03 * entropy(counts)


@pytest.mark.parametrize("kind", ["normal", "two humps", "flat"])
@pytest.mark.parametrize("levels", [15, 31])
def test_corrected_takes_a_hundredth_more_than_entropy_on_anything(kind: str, levels: int) -> None:
    counts = bell_counts(kind, 192, levels, 4096)
    assert 1 < bits(Corrected(), counts, 4096) / entropy(counts) < 1.01
    if kind != "normal":
        assert bits(Parametric(), counts, 4096) > 1.04 * entropy(counts)


def test_shared_is_best_for_a_mask() -> None:
    codes = (np.random.default_rng(3).random((64, 500)) < 0.02).astype(np.int64)
    counts = count(codes, 2)
    found = {type(model): bits(model, counts, 500) for model in MODELS}
    assert min(found, key=lambda model: found[model]) is Shared
    pooled = entropy(counts.sum(0, keepdims=True))
    assert pooled < found[Shared] < 1.01 * pooled + 8 * 2


def test_what_is_never_seen_costs_little() -> None:
    counts = np.array([[0] * 7 + [1000] + [0] * 8, [1000] + [0] * 15])
    for model in MODELS[1:]:
        tables = model.tables(model.fit(counts, 1000), 2, 16, 1000)
        assert cost(counts, tables.shares[tables.table]).max() < 10


def test_distributions_are_what_they_are_called() -> None:
    x: Floats = np.arange(-WIDTH * STEPS, WIDTH * STEPS + 1) / STEPS
    normal = 0.5 + np.array([math.erf(v / 2**0.5) for v in x]) / math.erf(WIDTH / 2**0.5) / 2
    logistic = 1 / (1 + np.exp(-math.pi * x / 3**0.5))
    tail = np.exp(-(2**0.5) * abs(x)) / 2
    expected = ONE * np.stack([normal, logistic, np.where(x < 0, tail, 1 - tail)])
    assert abs(shapes() - expected).max() < 0.51
    assert abs(inverse_scales() - 2.0 ** (20 - np.arange(SCALES) / 6)).max() < 0.51


def test_integers_that_files_depend_on() -> None:
    """No release may change one of these: what has been stored would be decoded into something else."""
    assert [precision(levels) for levels in (1, 64, 65, 256)] == [12, 12, 14, 14]
    assert shapes()[:, [0, 448, 512, 513, 576, 1024]].tolist() == [
        [0, 2661793, 8388608, 8493184, 14115423, 16777216],
        [8, 2351823, 8388608, 8507469, 14425393, 16777208],
        [102, 2039411, 8388608, 8571939, 14737805, 16777114],
    ]
    assert inverse_scales()[[0, 1, 6, 24, 30, 63]].tolist() == [1048576, 934175, 524288, 65536, 32768, 724]
    whole = hashlib.sha256(np.concatenate([shapes().ravel(), inverse_scales()]).astype("<i8").tobytes())
    assert whole.hexdigest() == "a756e888f7991ad0b1d3ce27a91cba046da2e713b1e52eb9299d5a85d40ed34f"
    normal, laplace = Parametric().tables(bytes([60, 16, 30, 2 * SCALES + 36]), 2, 15, 100).shares.tolist()
    assert normal == [1, 5, 20, 68, 180, 375, 612, 792, 782, 612, 375, 180, 68, 20, 6]
    assert laplace == [1208, 510, 662, 510, 358, 252, 177, 124, 87, 62, 43, 31, 22, 15, 35]
    assert Shared().tables(bytes([255, 16, 0, 1]), 3, 4, 9).shares.tolist() == [[4077, 17, 1, 1]]
    histogram = bytes(13) + bytes([115, 115, 140, 140]) + bytes(14)
    coded = bytes.fromhex("ed6c5400 98733800 27c11000 fe6b0b00")
    corrected = Corrected().tables(bytes([10, 29, 31, 26]) + histogram + coded, 2, 5, 100)
    assert corrected.shares.tolist() == [[2421, 152, 10, 1361, 152], [10, 152, 1361, 152, 2421]]
    assert [type(model).__name__ for model in MODELS][:3] == ["Shared", "Parametric", "Corrected"]
