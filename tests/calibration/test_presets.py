"""Presets: the settings that keep a promise, on what they are measured, and what compress says of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kvtool
from kvtool.calibration import held_back, pieces
from kvtool.calibration.held_back import Quality, hold_back
from kvtool.calibration.learning import Progress
from kvtool.calibration.pieces import pieces_of_store
from kvtool.calibration.presets import TRIES, find_settings, used_up
from kvtool.cli import app
from kvtool.codecs import Calibration, CodecError, recipes
from kvtool.codecs.quantize.deadzone import Deadzone
from kvtool.codecs.recipe import PRESETS
from kvtool.errors import DONE, GATE, UsageError
from kvtool.store.local import LocalStore

KLT = recipes()["klt"]
assert KLT.dial is not None
DIAL = KLT.dial
BETWEEN = (1e-4, 10.0)


def model(scale: float, floor: float = 0.0, kept: Callable[[float], float] = lambda _: 1.0) -> Any:
    """What would be measured on a model whose KL is ``floor + scale * setting ** 2``."""
    settings: list[float] = []

    def measure(setting: float) -> Quality:
        settings.append(setting)
        kl = floor + scale * setting**2
        return Quality(100 * kl, 100, 20, 1000, round(20 * kept(setting)), 20)

    measure.settings = settings  # type: ignore[attr-defined]
    return measure


def without_presets(calibration: Calibration) -> Calibration:
    """The calibration as an older version made it."""
    facts = {name: fact for name, fact in calibration.facts.items() if name != PRESETS}
    return dataclasses.replace(calibration, facts=facts)


def step_of(store: LocalStore, variant: str = "klt") -> float:
    (step,) = {s.step for s in store.open("a.txt", variant).contents.pipeline.keys if isinstance(s, Deadzone)}
    return step


# The settings


@pytest.mark.parametrize("scale", [1.0, 6.0, 400.0])
def test_a_preset_is_the_same_promise_at_another_setting_on_each_model(scale: float) -> None:
    measure = model(scale)
    found = find_settings(DIAL.presets, measure, BETWEEN)
    for name, preset in DIAL.presets.items():
        assert found[name].met
        assert 0.8 * preset.max_kl <= found[name].kl <= preset.max_kl
        assert found[name].setting == pytest.approx((preset.max_kl / scale) ** 0.5, rel=0.12)
    assert len(measure.settings) <= TRIES * len(DIAL.presets)
    assert list(found) == list(DIAL.presets)


def test_facts_that_are_lost_lower_the_setting() -> None:
    measure = model(1.0, kept=lambda setting: 1.0 if setting < 0.1 else 0.2)
    small = find_settings(DIAL.presets, measure, BETWEEN)["small"]
    assert small.met
    assert small.retrieval == 1
    assert small.setting < 0.1
    # Too few facts say nothing.
    assert Quality(1, 1, 1, 1, 0, held_back.FEWEST_FACTS - 1).retrieval is None
    half = Quality(DIAL.presets["small"].max_kl / 2, 1, 1, 1, 0, 2)
    assert used_up(DIAL.presets["small"], half) == pytest.approx(0.5)


def test_a_promise_that_no_setting_keeps_is_not_met() -> None:
    found = find_settings(DIAL.presets, model(1.0, floor=0.01), BETWEEN)
    assert not found["near-lossless"].met
    assert found["near-lossless"].kl >= 0.01
    assert found["balanced"].met


# What is held back


def test_what_is_held_back_is_not_learned_from(
    measured: tuple[LocalStore, Calibration], lively: kvtool.Model
) -> None:
    store, calibration = measured
    everything = pieces_of_store(store, None, lively, 10**6)
    total = sum(len(piece.token_ids) for piece in everything)
    ids = [token for piece in everything for token in piece.token_ids]
    # Where there is more text, the sample keeps its size, up to the few tokens of last pieces.
    sample, held = hold_back(pieces_of_store(store, None, lively, 1536 + 192), 1536, lively)
    learned = [token for piece in sample for token in piece.token_ids]
    assert learned == ids[: len(learned)]
    assert 1536 - 2 * pieces.SHORTEST < len(learned) <= 1536
    assert sum(len(piece.token_ids) for piece in held) == 192
    # Where there is none, an eighth of it is held back, and where that is too little, nothing.
    sample, held = hold_back(everything, total, lively)
    learned = [token for piece in sample for token in piece.token_ids]
    # The few tokens of a last piece are not worth a pass.
    assert learned == ids[: len(learned)]
    assert 0 <= total - total // 8 - len(learned) < pieces.SHORTEST
    apart = [token for piece in held for token in piece.token_ids]
    assert apart == ids[-(total // 8) :][: len(apart)]
    assert len(apart) >= held_back.SHORTEST
    assert hold_back(everything[:2], 10**6, lively) == (everything[:2], [])
    assert calibration.facts["source"]["tokens"] == len(learned)  # type: ignore[index,call-overload]


def test_a_calibration_holds_what_was_measured_and_is_the_same_again(
    measured: tuple[LocalStore, Calibration], lively: kvtool.Model, tmp_path: Path
) -> None:
    store, calibration = measured
    seen: list[Progress] = []
    copy = LocalStore(shutil.copytree(store.root, tmp_path / "copy"))
    again = kvtool.calibrate(copy, model=lively, on_progress=lambda p: seen.append(dataclasses.replace(p)))
    assert again.digest == calibration.digest
    assert 0 < seen[-1].settings <= seen[-1].settings_total
    for name, preset in DIAL.presets.items():
        found = DIAL.measured(name, Calibration.from_bytes(calibration.to_bytes()))
        assert found is not None
        assert found.met == (found.kl <= preset.max_kl)
        assert (found.tokens, found.retrieval) == (held_back.PREDICTED, None)
        assert 0 < found.bits_per_value < 16
    settings = [DIAL.setting(name, calibration) for name in DIAL.presets]
    assert settings == sorted(settings)
    assert settings[1] != DIAL.presets["balanced"].setting
    (stage,) = [stage for stage in KLT.build(calibration).keys if isinstance(stage, Deadzone)]
    assert stage.step == settings[1]


@pytest.mark.parametrize("record", [3, {}, {"setting": "x"}, None])
def test_what_kvtool_never_writes_is_refused(measured: tuple[LocalStore, Calibration], record: Any) -> None:
    _, calibration = measured
    wrong = dataclasses.replace(calibration, facts={**calibration.facts, PRESETS: {"balanced": record}})
    with pytest.raises(CodecError, match="preset 'balanced' is not as kvtool writes it"):
        KLT.build(wrong)
    far = {**calibration.facts[PRESETS]["balanced"], "setting": 900.0}  # type: ignore[index,call-overload,dict-item]
    wrong = dataclasses.replace(calibration, facts={**calibration.facts, PRESETS: {"balanced": far}})
    with pytest.raises(CodecError, match=r"step is 900\.0"):
        KLT.build(wrong)


# Compressing


@pytest.fixture
def own(measured: tuple[LocalStore, Calibration], tmp_path: Path) -> LocalStore:
    """A copy of the store."""
    return LocalStore(shutil.copytree(measured[0].root, tmp_path / "own"))


def presets_to(said: list[str]) -> Callable[[str], None]:
    """Takes what is said, and leaves out what is said of inputs that are measured."""

    def say(text: str) -> None:
        if not text.startswith("measuring "):
            said.append(text)

    return say


def test_compress_says_first_what_it_costs(
    own: LocalStore, measured: tuple[LocalStore, Calibration], lively: kvtool.Model
) -> None:
    said: list[str] = []
    report = kvtool.compress(own, model=lively, say=presets_to(said))
    balanced = DIAL.measured("balanced", measured[1])
    assert balanced is not None
    assert said == [
        f"klt: preset balanced, step={balanced.setting:g}: KL about {balanced.kl:.2g}, {balanced.bits_per_value:.2g} bits per "
        "value on this model, measured when it was calibrated"
    ]
    assert report.to_json()["preset"] == {
        "name": "balanced",
        "parameter": "step",
        "setting": balanced.setting,
        "met": True,
        "kl": balanced.kl,
        "bits_per_value": balanced.bits_per_value,
        "retrieval": None,
    }
    assert step_of(own) == balanced.setting
    # Nothing is said where nothing is done; a preset that is named is the same.
    assert kvtool.compress(own, model=lively, preset="balanced", say=presets_to(said)).unchanged == ["a.txt"]
    assert len(said) == 1
    kvtool.compress(own, model=lively, preset="small", name="small", say=presets_to(said))
    assert step_of(own, "small") == DIAL.setting("small", measured[1])
    # What else is asked for was not measured.
    kvtool.compress(own, model=lively, power=0.1, name="other", say=presets_to(said))
    assert said[-1] == f"other: preset balanced, step={balanced.setting:g}: not measured with power=0.1"
    report = kvtool.compress(own, model=lively, step=0.2, name="set", say=presets_to(said))
    assert report.preset is None
    assert len(said) == 3


def test_an_older_calibration_keeps_the_fixed_settings(
    own: LocalStore, measured: tuple[LocalStore, Calibration], lively: kvtool.Model
) -> None:
    older = without_presets(measured[1])
    said: list[str] = []
    report = kvtool.compress(own, model=lively, calibration=older, say=presets_to(said))
    assert said == [
        "klt: preset balanced, step=0.075: not measured on this model, since the calibration is older, or of too little text"
    ]
    assert report.to_json()["preset"]["met"] is None
    assert step_of(own) == 0.075
    # Made under the older default, it is no other variant now.
    assert kvtool.compress(own, model=lively, calibration=older, step=0.075).unchanged == ["a.txt"]
    with pytest.raises(kvtool.KvtoolError, match="made otherwise"):
        kvtool.compress(own, "a.txt", model=lively, calibration=measured[1])


def test_a_recipe_without_presets_promises_nothing(own: LocalStore) -> None:
    said: list[str] = []
    report = kvtool.compress(own, recipe="kivi", say=said.append)
    assert (said, report.preset) == ([], None)
    with pytest.raises(UsageError, match="recipe 'kivi' has no dial to turn"):
        kvtool.compress(own, recipe="kivi", preset="small")


# The commands


@pytest.fixture
def cli(own: LocalStore, lively_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("KVTOOL_STORE", str(own.root))
    monkeypatch.setenv("KVTOOL_MODEL", str(lively_dir))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")

    def cli(*args: str, code: int = DONE) -> Any:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        return result

    return cli


def test_commands_show_what_presets_promise_and_cost(
    cli: Callable[..., Any], measured: tuple[LocalStore, Calibration]
) -> None:
    balanced = DIAL.measured("balanced", measured[1])
    assert balanced is not None
    line = f"  balanced: step={balanced.setting:g}, {balanced.describe()}"
    calibrated = cli("calibrate")
    assert "measuring what the presets cost" in calibrated.stderr
    assert line in calibrated.stderr.splitlines()
    shown = cli("recipes", "klt").stdout.splitlines()
    assert f"  balanced: {DIAL.presets['balanced'].describe()}" in shown
    assert line in shown
    assert f"{balanced.describe()} on this model" in cli("compress", "--dry-run").stderr


def test_an_unmet_promise_is_a_gate(
    cli: Callable[..., Any], own: LocalStore, measured: tuple[LocalStore, Calibration]
) -> None:
    presets = {name: dict(one) for name, one in measured[1].facts[PRESETS].items()}  # type: ignore[union-attr]
    for preset in ("near-lossless", "balanced"):
        presets[preset] |= {"met": False, "kl": 0.5}
    with own.writing():
        own.put_calibration(dataclasses.replace(measured[1], facts={**measured[1].facts, PRESETS: presets}))
    for _ in range(2):
        result = cli("compress", "--preset", "near-lossless", code=GATE)
        assert (
            "no setting keeps what preset near-lossless promises on this model (KL at most" in result.stderr
        )
    # The default was not asked for.
    default = cli("compress", "--name", "other", code=DONE)
    assert "no setting keeps what preset balanced promises" in default.stderr
