"""What finds the blocks of pages, and what refuses wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Command, blocks, commands, inline_commands
from tests.docs.reader import check_flags, check_shell

PAGE = """# A page

Run `kvtool ls --store kv-store && kvtool gc`, where `kvtool.lock` is:

<!-- test: after kvtool ls; exit 4 -->
```sh
kvtool verify
```

```toml
model = "embedded"
```

<!-- test: parse: there is no bucket -->

```sh
kvtool push s3://caches
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_blocks_have_their_line_their_language_and_what_they_need(page: Path) -> None:
    found = [(block.line, block.language, block.needs) for block in blocks(page)]
    assert found == [
        (6, "sh", {"after": "kvtool ls", "exit": "4"}),
        (10, "toml", {}),
        (16, "sh", {"parse": "there is no bucket"}),
    ]
    assert next(blocks(page)).text == "kvtool verify\n"
    assert list(inline_commands(page)) == ["kvtool ls --store kv-store", "kvtool gc"]


@pytest.mark.parametrize("comment", ["parse", "parse: ", "servant", "exit 4, server"])
def test_a_comment_that_says_nothing_is_refused(page: Path, comment: str) -> None:
    page.write_text(PAGE.replace("after kvtool ls; exit 4", comment))
    with pytest.raises(AssertionError):
        list(blocks(page))


def test_commands_of_a_shell() -> None:
    text = """
    kvtool ask "What is
    this?" --doc a.md   # a comment
    curl -s x | kvtool prefill - \\
       --name x.html && kvtool ls --json > list.json
    """
    fetched = Command(("curl", "-s", "x"))
    assert list(commands(text)) == [
        Command(("kvtool", "ask", "What is\n    this?", "--doc", "a.md")),
        Command(("kvtool", "prefill", "-", "--name", "x.html"), fetched),
        Command(("kvtool", "ls", "--json"), None, "list.json"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "kvtool prefill docs/ --modle x",
        "kvtool serve-cache --port many",
        "kvtool ask --doc a.md",
        "kvtool rm",
    ],
)
def test_flags_and_values_of_what_is_not_run_are_checked(text: str) -> None:
    with pytest.raises(AssertionError, match="kvtool"):
        check_shell(f"true | {text}")


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(AssertionError, match="no command perfill"):
        check_shell("kvtool perfill docs/")
    with pytest.raises(AssertionError, match="--modle"):
        check_flags("kvtool prefill --modle")
    with pytest.raises(AssertionError, match="extras"):
        check_shell("pip install '.[serve,buckets]'")
    check_flags("kvtool prefill --model=x --help")


def test_pages_have_blocks_of_both_kinds() -> None:
    """Nothing is checked where nothing is found, as of blocks that are indented."""
    found = [block for page in (ROOT / "docs/how-to").glob("*.md") for block in blocks(page)]
    assert sum(block.language == "sh" for block in found) > 30
    assert sum(block.language == "python" for block in found) > 5
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert page.read_text().count("```") == 2 * len(list(blocks(page))), (
            f"{page} has a block that is not found"
        )
