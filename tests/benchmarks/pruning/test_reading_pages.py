"""A whole run on a tiny model: what is read, and how it compares with the full load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kvtool
from benchmarks.corpora import texts
from benchmarks.corpora.sources import Source
from benchmarks.pruning import reading_pages
from kvtool.server.app import create_app
from kvtool.server.runtime.load_policy import LoadOptions
from kvtool.server.runtime.service import Limits, Service
from tests.loopback import listen

WORDS = "The ship left at dawn with seven sailors.\nIts cargo was apples, and bread, and {} ropes.\n"


def test_a_run_writes_the_page(
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = make_model(tmp_path / "model", num_hidden_layers=4, max_position_embeddings=2048)
    model = kvtool.load_model(directory, device="cpu")

    @contextmanager
    def served(*options: str) -> Iterator[tuple[None, str]]:
        serving = Service.over(Path(options[1]), model, Limits(memory=1 << 28), loading=LoadOptions("raw"))
        with listen(create_app(serving)) as url:
            yield None, url

    source = [Source("ship", lambda _: "".join(WORDS.format(n) for n in range(60)))]
    monkeypatch.setattr(texts, "HELD_OUT", {"prose": source})
    monkeypatch.setattr(reading_pages.kvtool, "load_model", lambda: model)
    monkeypatch.setattr(reading_pages, "served", served)
    page = tmp_path / "page.md"
    settings = "--tokens 400 --read 20 100 --haystacks 1 --keys 3 --questions 2 --repeats 1"
    reading_pages.main([*settings.split(), "--folder", str(tmp_path / "kept"), "--write", str(page)])

    full, some, every = [line.split(" | ") for line in page.read_text().splitlines() if " of 2 | " in line]
    assert [line[0] for line in (full, some, every)] == ["| all", "| 20%", "| 100%"]
    assert full[2] == "100%"
    # Of four layers, two are read whole.
    assert 50 < float(some[2].rstrip("%")) < 75
    assert float(every[6].split()[0]) == pytest.approx(0.0, abs=1e-3)
