"""The joint dial on documents: what is measured, what is kept of it, and that decoding needs nothing new."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvtool
from kvtool.calibration import remembered
from kvtool.compression import resolve
from kvtool.compression.joint.choice import Choice
from kvtool.compression.report import Report
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore


@pytest.fixture
def long(tiny: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A store with a document that is long enough to hold something back, and a short one."""
    monkeypatch.chdir(tmp_path)
    Path("long.txt").write_text(
        "\n".join(f"Paragraph {n} is about the number {n * 37 % 101}." for n in range(60))
    )
    Path("short.txt").write_text("Seven ships left the harbour.")
    store = LocalStore("kv-store")
    kvtool.prefill(["long.txt", "short.txt"], model=tiny, store=store)
    return store


def chosen(report: Report) -> Choice:
    assert isinstance(report.setting, Choice)
    return report.setting


def test_the_setting_is_measured_once_and_kept(
    long: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    report = kvtool.compress(
        long, "long.txt", recipe="keydiff+kivi", model=tiny, resident="30%", say=lines.append
    )
    choice = chosen(report)
    assert choice.quality is not None
    assert choice.candidates == 6
    assert 0.29 < choice.candidate.resident <= 0.3
    assert lines[0].startswith("keydiff+kivi: finding settings for --resident 30% on 4 segments")
    assert "measuring 6 settings of that size on" in lines[1]
    made = long["long.txt"].segments[0].variants["keydiff+kivi"].recipe
    assert made["resident"] == 0.3
    assert made["pipeline"]["prune"]["keep"] == choice.parameters["keep"]
    assert made["pipeline"]["keys"][0]["bits"] == choice.parameters["bits"]
    # What is loaded takes what was promised; the prefix is kept whole.
    raw, pruned = (long.open("long.txt", variant).contents.geometry for variant in ("raw", "keydiff+kivi"))
    assert pruned.cache_nbytes <= 0.31 * raw.cache_nbytes
    # Under another name, what was measured is remembered; the model is not run again for it.
    monkeypatch.setattr(remembered, "HeldBack", lambda *_: pytest.fail("measured again"))
    again = kvtool.compress(long, "long.txt", recipe="keydiff+kivi", model=tiny, resident=0.3, name="again")
    assert chosen(again) == choice
    # Who joins takes the setting, though it was found on another document.
    monkeypatch.setattr(resolve, "find_choice", lambda *_: pytest.fail("searched again"))
    joined = kvtool.compress(long, "short.txt", recipe="keydiff+kivi", model=tiny, resident=0.3)
    assert joined.compressed == ["short.txt"]
    assert long["short.txt"].segments[0].variants["keydiff+kivi"].recipe == made


def test_where_one_parameter_is_set_nothing_is_measured(
    long: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded model is another one, and takes long to load.
    monkeypatch.setattr(resolve, "_embedded_model", lambda *_: None)
    report = kvtool.compress(long, "long.txt", recipe="keydiff+kivi", bits=4, ratio=6)
    assert chosen(report).quality is None
    assert 2.6 < chosen(report).candidate.bits <= 16 / 6
    with pytest.raises(
        UsageError, match=r"--ratio 6: settings of that size are told apart by running .* give --model"
    ):
        kvtool.compress(long, "long.txt", recipe="keydiff+kivi", ratio=6, name="other")


def test_too_little_text_says_what_to_set(long: LocalStore, tiny: kvtool.Model) -> None:
    store = LocalStore("short-store")
    kvtool.prefill(["short.txt"], model=tiny, store=store)
    with pytest.raises(
        UsageError, match=r"too little text to tell settings of that size apart; .*--set bits=VALUE"
    ):
        kvtool.compress(store, recipe="keydiff+kivi", model=tiny, resident=0.5)
