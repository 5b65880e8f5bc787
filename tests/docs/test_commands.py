"""Every block of the pages is run as it is written, by a tiny model over the sample texts.

``tests.docs.blocks`` says how a page marks a block that needs something, or that cannot be run. The blocks of a page are run
in their order, in a folder of the page's own. The exercises are run by tests of their own, and so is what the README and the
tutorial print.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kvtool
from tests.docs.blocks import ROOT, Block, blocks, inline_commands
from tests.docs.reader import Reader, check_flags

PAGES = sorted(
    page
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if page.parent.name not in ("decisions", "exercises", "results")
)

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "README.md": {"console", "python"},
    "docs/tutorial/first-steps.md": {"console"},
    "docs/reference/commands.md": {"console"},
}
"""Blocks that ``tests/test_readme.py`` runs, or that are generated from the code."""
KINDS = {"sh", "python", "toml", "json", "yaml", ""}
"""The others. Without a language they are pictures and trees of files."""

TEXTS = (
    "docs/guide.md",
    "docs/explanation/faq.md",
    "docs/a.md",
    "docs/b.md",
    "offers/a.md",
    "offers/b.md",
    "a.md",
    "b.md",
    "notes.md",
    "home/papers/one.md",
)
"""Names that pages give documents."""


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> kvtool.Model:
    """A tiny model with room for some documents and a question."""
    directory = tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct.Q4_1"
    return kvtool.load_model(
        make_model(directory, initializer_range=0.3, max_position_embeddings=2048), device="cpu"
    )


@pytest.fixture(scope="module")
def prepared(model: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents, with a store of them; not to be written to."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "samples").mkdir()
    for sample in (ROOT / "samples").iterdir():
        # Each byte is a token of the tiny model: a third of a text is enough.
        (folder / "samples" / sample.name).write_text(sample.read_text()[:600] + "\n")
    words = (ROOT / "samples/harbour.md").read_text()
    for number, name in enumerate(TEXTS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"Number {number}.\n\n{words[50 * number : 50 * number + 400]}\n")
    (folder / "tokens.txt").write_text("alice 0123456789abcdef0123\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        store = kvtool.Store("kv-store")
        report = kvtool.prefill(["samples", "docs", "offers", "a.md", "b.md"], model=model, store=store)
        kvtool.calibrate(store, model=model, recipe="klt", tokens=2048)
    assert not report.problems
    return folder


@pytest.fixture
def reader(prepared: Path, model: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("KVTOOL_MODEL", str(model.directory))
    monkeypatch.setenv("KVTOOL_DEVICE", "cpu")
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    return Reader(folder, model, monkeypatch)


def blocks_of(page: Path) -> list[Block]:
    elsewhere = ELSEWHERE.get(page_name(page), set())
    return [block for block in blocks(page) if block.language not in elsewhere]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=page_name)
def test_every_block_runs(page: Path, reader: Reader, request: pytest.FixtureRequest) -> None:
    found = blocks_of(page)
    if any("bucket" in block.needs for block in found):
        reader.objects = request.getfixturevalue("objects")
    for block in sorted(found, key=lambda block: "file" not in block.needs):
        assert block.language in KINDS, f"{block}: how is a block of {block.language} run?"
        try:
            reader.do(block)
        except BaseException as error:
            error.add_note(f"in {block}")
            raise


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=page_name)
def test_commands_within_sentences_have_the_flags_that_are_named(page: Path) -> None:
    for command in inline_commands(page):
        check_flags(command)
