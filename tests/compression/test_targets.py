"""Targets for the dial of klt: the setting that meets one, and documents that join a variant with a target."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvtool
from kvtool.codecs import Pipeline
from kvtool.compression import resolve
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore


@pytest.fixture
def long(store: LocalStore, tiny: kvtool.Model) -> LocalStore:
    """With a document that is long enough to measure KL on, and a calibration for klt."""
    text = "\n".join(f"Paragraph {n} is about the number {n}, and so on." for n in range(9))
    Path("long.md").write_text(text)
    kvtool.prefill(["long.md"], model=tiny, store=store)
    kvtool.calibrate(store, model=tiny)
    return store


def pipelines(store: LocalStore, variant: str) -> list[Pipeline]:
    """The pipeline of each document that has the variant."""
    return [
        Pipeline.from_config(document.segments[0].variants[variant].recipe["pipeline"], store.calibrations)
        for document in store.values()
        if variant in document.variants
    ]


def test_a_setting_that_meets_the_target_is_found_and_kept(
    long: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = kvtool.compress(long, "long.md", model=tiny, bits=2.5, name="small")
    assert report.setting is not None
    assert report.setting.met
    assert report.setting.measured <= 2.5
    assert long["long.md"].segments[0].variants["small"].recipe["target"] == {"unit": "bits", "value": 2.5}
    # Who joins takes the setting, though it was found on another document.
    monkeypatch.setattr(resolve, "find_setting", lambda *_: pytest.fail("searched again"))
    joined = kvtool.compress(long, model=tiny, bits=2.5, name="small")
    assert joined.unchanged == ["long.md"]
    assert len(joined.compressed) == len(long) - 1
    assert len({str(pipeline.to_config()) for pipeline in pipelines(long, "small")}) == 1


def test_kl_is_measured_with_the_model(
    long: LocalStore, tiny: kvtool.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded model is another one, and takes long to load.
    monkeypatch.setattr(resolve, "_embedded_model", lambda *_: None)
    with pytest.raises(UsageError, match=r"--model"):
        kvtool.compress(long, "long.md", max_kl=0.01)
    report = kvtool.compress(long, "long.md", model=tiny, max_kl=0.01)
    assert report.setting is not None
    assert report.setting.met
    assert 0 < report.setting.measured <= 0.01
    with pytest.raises(UsageError, match="no segment is long enough to measure KL on"):
        kvtool.compress(long, "c.txt", model=tiny, max_kl=0.01, name="short")
