"""The files of calibrations: what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtool import limits
from kvtool.codecs.format import container
from kvtool.digest import digest
from kvtool.errors import ArtifactError
from kvtool.store.calibrations import BrokenCalibration, Calibrations
from kvtool.store.local import LocalStore
from kvtool.system import files
from tests.store.conftest import aged, simple


def test_what_is_put_is_there_for_whoever_opens_the_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    assert not store.calibrations
    with store.writing():
        store.put_calibration(simple())
        store.put_calibration(simple())
        store.put_calibration(simple(2))
    calibrations = LocalStore(tmp_path / "store").calibrations
    assert set(calibrations) == {simple().digest, simple(2).digest}
    assert calibrations[simple().digest] == simple()
    assert calibrations[simple().digest] is calibrations[simple().digest], "read twice"
    path = tmp_path / "store" / "calibrations" / f"{simple().digest}.safetensors"
    assert calibrations.path_of(simple().digest) == path
    assert path.read_bytes() == simple().to_bytes()


@pytest.mark.parametrize("name", ["0" * 64, "", "x", "../../etc/passwd", "G" * 64, "0" * 63])
def test_what_is_not_there_is_missing_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name[:10] or 'y'}.safetensors".replace("/", "")).write_bytes(simple().to_bytes())
    calibrations = Calibrations(tmp_path)
    assert name not in calibrations
    assert list(calibrations) == []
    with pytest.raises(KeyError):
        calibrations[name]


def test_writing_is_atomic(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.put_calibration(simple())
    assert not store.calibrations
    assert not list(store.root.rglob(files.TEMPORARY + "*"))


@pytest.mark.parametrize("at", [0, 20, 200, -1])
def test_a_flipped_bit_is_refused_with_the_files_name(tmp_path: Path, at: int) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.put(simple())
    path = calibrations.path_of(simple().digest)
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(BrokenCalibration, match=f"{path}.*digest differs.*verify --remove"):
        calibrations[simple().digest]


def test_what_is_whole_but_no_calibration_is_refused_and_not_called_broken(tmp_path: Path) -> None:
    data = container.to_bytes({}, {"kvtool": json.dumps({"kind": "calibration", "format": 2})})
    path = tmp_path / f"{digest(data)}.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{path}.*format 2.*upgrade") as caught:
        Calibrations(tmp_path)[path.stem]
    assert not isinstance(caught.value, BrokenCalibration)


def test_a_file_past_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.put(simple())
    monkeypatch.setattr(limits, "CALIBRATION_BYTES", 100)
    with pytest.raises(ArtifactError, match="at most 100"):
        calibrations[simple().digest]


def test_the_newest_of_a_method_and_a_model(store: LocalStore) -> None:
    old, new = simple(1), simple(2)
    aged(store, new, old)
    assert store.calibrations.newest("mean", "m") == old
    aged(store, old, new, simple(3, model="n"), simple(4, method="klt"))
    assert store.calibrations.newest("mean", "m") == new
    assert store.calibrations.newest("klt", "m") == simple(4, method="klt")
    assert store.calibrations.newest("klt", "n") is None
