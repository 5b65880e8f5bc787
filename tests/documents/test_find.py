from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from kvtool import limits
from kvtool.documents.find import Found, find
from kvtool.errors import DocumentError, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Any:
    """Makes files below the working directory, which has its own `outside` next to it."""
    here = tmp_path / "here"
    here.mkdir()

    def make(*names: str, text: str = "text\n") -> Path:
        for name in names:
            file = here / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return here

    return make


def names(arguments: Any, cwd: Any, **options: Any) -> Any:
    documents, errors, _ = find(arguments, cwd=cwd, **options)
    assert [str(error) for error in errors] == []
    assert all(document.path.is_file() and document.path.is_absolute() for document in documents)
    return [document.name for document in documents]


def only_error(arguments: Any, cwd: Any, **options: Any) -> str:
    _, errors, _ = find(arguments, cwd=cwd, **options)
    assert [type(error) for error in errors] == [DocumentError]
    assert "\n" not in str(errors[0])
    return str(errors[0])


def test_a_folder_is_walked_in_sorted_order_and_named_from_the_working_directory(tree: Any) -> None:
    here = tree("docs/b.md", "docs/a/z.md", "docs/a.md", "docs/a/c/d.txt", "elsewhere.md")
    assert names(["docs"], here) == ["docs/a/c/d.txt", "docs/a/z.md", "docs/a.md", "docs/b.md"]
    assert (
        names(["docs/"], here)
        == names([here / "docs"], here)
        == names(["./docs"], here)
        == names(["docs"], here)
    )
    assert names(["."], here / "docs") == ["a/c/d.txt", "a/z.md", "a.md", "b.md"]


def test_the_path_is_absolute_and_leads_to_the_file(tree: Any) -> None:
    here = tree("docs/a.md")
    assert find(["docs/a.md"], cwd=here)[0] == [Found("docs/a.md", here / "docs/a.md")]


def test_what_a_walk_passes_over_is_counted(tree: Any) -> None:
    here = tree(
        "docs/a.md", "docs/.b.md", "docs/c.JPG", "docs/d/e.jpg", "docs/f.md", "docs/g.log", "docs/s/x.md"
    )
    tree("docs/s/kvtool-store.json")
    tree("docs/.gitignore", text="*.log")
    (here / "docs/link").symlink_to(here / "docs/d")
    documents, errors, passed_over = find(["docs"], cwd=here, exclude=["f.md"])
    assert ([document.name for document in documents], errors) == (["docs/a.md"], [])
    expected = {"hidden": 2, ".jpg": 2, "excluded": 1, "ignored": 1, "store": 1, "special": 1}
    assert passed_over == expected


def test_the_process_working_directory_is_the_default(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree("a.md"))
    assert [document.name for document in find(["a.md"])[0]] == ["a.md"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("../outside/docs", "docs/a.md"),
        ("../outside/docs/a.md", "a.md"),
        ("../outside/docs/*.md", "docs/a.md"),
        ("../outside", "outside/docs/a.md"),
        ("docs/../../outside/docs/a.md", "a.md"),
        ("../here/b.md", "b.md"),
    ],
)
def test_outside_the_working_directory_the_argument_names(tree: Any, argument: Any, expected: Any) -> None:
    here = tree("../outside/docs/a.md", "b.md", "docs/c.md")
    assert names([argument], here) == [expected]


def test_the_parent_of_the_working_directory(tree: Any) -> None:
    here = tree("../outside/a.md", "b.md")
    assert names([".."], here) == ["b.md", f"{here.parent.name}/outside/a.md"]


def test_ignore_files_nest_negate_and_override(tree: Any) -> None:
    here = tree(
        "keep.md", "drop.log", "build/x.md", "sub/a.md", "sub/keep.log", "sub/deep/c.log", "sub/tmp.md"
    )
    (here / ".gitignore").write_text("\ufeff# comment\r\n*.log\r\nbuild/\r\n!\r\n", newline="")
    (here / "sub/.gitignore").write_text("!keep.log\n/tmp.md\n")
    assert names(["."], here) == ["keep.md", "sub/a.md", "sub/keep.log"]
    (here / "sub/.kvtoolignore").write_text("a.md\n!tmp.md\n!*.log\n")
    assert names(["."], here) == ["keep.md", "sub/deep/c.log", "sub/keep.log", "sub/tmp.md"]


@pytest.mark.parametrize(
    ("rules", "nested", "expected"),
    [
        ("*.md", "!sub/", []),
        ("a/**", "!x.md", ["a/x.md"]),
        ("*/\n!/a/", "", ["a/x.md", "a/y.md"]),
        ("/*\n!/a", "", ["a/sub/x.md", "a/sub/z.md", "a/x.md", "a/y.md"]),
        ("a/**/x.md", "", ["a/sub/z.md", "a/y.md"]),
        ("x.md\n", "!/sub/x.md", ["a/sub/x.md", "a/sub/z.md", "a/y.md"]),
    ],
)
def test_a_rule_is_about_the_entry_itself_as_in_git(
    tree: Any, rules: Any, nested: Any, expected: Any
) -> None:
    here = tree("a/x.md", "a/y.md", "a/sub/x.md", "a/sub/z.md")
    (here / ".gitignore").write_text(rules)
    (here / "a/.gitignore").write_text(nested)
    assert names(["."], here) == expected  # what `git ls-files --others --exclude-standard` lists


def test_rules_above_the_argument_hold_from_the_git_root(tree: Any) -> None:
    here = tree("repo/docs/a.md", "repo/docs/a.tmp", "repo/docs/a.bak")
    (here / ".gitignore").write_text("*.bak\n")
    (here / "repo/.gitignore").write_text("*.tmp\n")
    assert names(["repo/docs"], here) == ["repo/docs/a.md"]
    (here / "repo/.git").mkdir()
    assert names(["repo/docs"], here) == ["repo/docs/a.bak", "repo/docs/a.md"]
    assert names(["."], here / "repo/docs") == ["a.bak", "a.md"]


def test_what_is_named_outright_is_not_ignored(tree: Any) -> None:
    here = tree("build/x.md", "build/y.log", ".hidden/a.md", ".dot.md")
    (here / ".gitignore").write_text("build/\n*.log\n")
    assert names(["build/y.log", ".dot.md"], here) == ["build/y.log", ".dot.md"]
    assert names([".hidden"], here) == [".hidden/a.md"]
    assert names(["build"], here) == ["build/x.md", "build/y.log"]


def test_hidden_files_stores_and_other_kinds_are_passed_over(tree: Any) -> None:
    here = tree(
        "a.md", ".b.md", ".git/c.md", ".cache/d.md", "kv/kvtool-store.json", "kv/e.md", "page.html", "f.pdf"
    )
    tree(
        "photo.PNG",
        "w.safetensors",
        "m.gguf",
        "x.pyc",
        "font.woff2",
        "z.tar.gz",
        "s.mp3",
        "code.ts",
        "Makefile",
    )
    os.mkfifo(here / "pipe")
    assert names(["."], here) == ["Makefile", "a.md", "code.ts", "f.pdf", "page.html"]
    assert names(["photo.PNG"], here) == ["photo.PNG"]


def test_globs_match_as_a_shell_would_and_respect_ignore_rules(tree: Any) -> None:
    here = tree("docs/a.md", "docs/b/c.md", "docs/b/d.txt", "docs/draft.md", "top.md")
    (here / ".gitignore").write_text("draft.md\n")
    assert names(["docs/**/*.md"], here) == ["docs/a.md", "docs/b/c.md"]
    assert names(["docs/*.md"], here) == ["docs/a.md"]
    assert names(["*.md"], here) == ["top.md"]
    assert names(["docs/[ab]*"], here) == ["docs/a.md", "docs/b/c.md", "docs/b/d.txt"]
    assert names([f"{here}/docs/?.md"], here) == ["docs/a.md"]
    tree("odd[1].md")
    assert names(["odd[1].md"], here) == ["odd[1].md"]


def test_include_and_exclude(tree: Any) -> None:
    here = tree("docs/a.md", "docs/b.txt", "docs/old/c.md")
    assert names(["docs"], here, include=["*.md"]) == ["docs/a.md", "docs/old/c.md"]
    assert names(["docs"], here, exclude=["old/"]) == ["docs/a.md", "docs/b.txt"]
    assert names(["docs", "docs/b.txt"], here, include=["*.md"], exclude=["/docs/old"]) == ["docs/a.md"]
    with pytest.raises(UsageError, match=r"exclude: .*expected a pattern as in a \.gitignore"):
        find(["docs"], cwd=here, exclude=["!"])


def test_symbolic_links(tree: Any) -> None:
    here = tree("docs/real.md", "other/x.md")
    (here / "docs/link.md").symlink_to(here / "other/x.md")
    (here / "docs/folder").symlink_to(here / "other")
    (here / "docs/loop").symlink_to(here / "docs")
    assert names(["docs"], here) == ["docs/link.md", "docs/real.md"]
    assert names(["docs/folder"], here) == ["docs/folder/x.md"]


def test_a_file_reached_twice_appears_once(tree: Any) -> None:
    here = tree("docs/a.md", "docs/b.md")
    (here / "docs/c.md").symlink_to("a.md")
    assert names(["docs/b.md", "docs", "docs/*.md", f"{here}/docs/a.md"], here) == ["docs/b.md", "docs/a.md"]


def test_links_that_lead_nowhere_are_errors(tree: Any) -> None:
    here = tree("docs/a.md")
    (here / "docs/gone.md").symlink_to("nothing")
    assert "docs/gone.md: cannot be opened (No such file or directory)" in only_error(["docs"], here)
    (here / "docs/gone.md").unlink()
    (here / "docs/self.md").symlink_to("self.md")
    assert "mend the link" in only_error(["docs"], here)
    assert "docs/self.md: too many levels" in only_error(["docs/self.md"], here)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("nope.md", ["nope.md: no such file", "expected a file or folder", "check the path"]),
        ("*.rst", ["*.rst: matches no documents", "check the pattern"]),
        ("nowhere/**/*.md", ["nowhere/**/*.md: matches no documents"]),
        ("", ["'': is not a path", "expected a file"]),
        ("a\0b", ["is not a path"]),
        ("x" * 5000, ["file name too long"]),
        ("new\nline", [r"'new\nline': no such file"]),
        ("pipe", ["pipe: is a named pipe", "expected a file or folder"]),
        ("socket", ["socket: is a socket"]),
        ("/dev/null", ["/dev/null: is a device"]),
        ("kv", ["kv: is a kvtool store", "name the folder they are in"]),
    ],
)
def test_an_argument_that_is_no_document_is_an_error_and_the_others_go_on(
    tree: Any, monkeypatch: pytest.MonkeyPatch, argument: Any, parts: Any
) -> None:
    here = tree("a.md", "b.md", "kv/kvtool-store.json")
    os.mkfifo(here / "pipe")
    monkeypatch.chdir(here)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        message = only_error(["a.md", argument, "b.md"], here)
        assert [document.name for document in find(["a.md", argument, "b.md"])[0]] == ["a.md", "b.md"]
    assert all(part in message for part in parts), message


def test_two_files_of_one_name(tree: Any) -> None:
    here = tree("../x/docs/a.md", "../y/docs/a.md")
    documents, errors, _ = find(["../x/docs", "../y/docs"], cwd=here)
    assert [document.name for document in documents] == ["docs/a.md"]
    (message,) = map(str, errors)
    assert f"{here.parent}/y/docs/a.md: would be named 'docs/a.md', as {here.parent}/x/docs/a.md" in message
    assert "rename one, or work from a folder that holds both" in message


def test_a_name_that_is_not_utf_8(tree: Any) -> None:
    here = tree("a.md")
    (here / os.fsdecode(b"caf\xe9.md")).write_text("text")
    message = only_error(["."], here)
    assert r"'caf\udce9.md': the name is not UTF-8" in message
    assert "rename" in message
    assert message.isprintable()


def test_a_name_that_is_too_long(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_NAME_BYTES", 8)
    message = only_error(["."], tree("fine.md", "éééé.md"))
    assert "éééé.md: the name has 11 bytes; expected at most 8; rename" in message


def test_what_may_not_be_looked_into_is_an_error(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tree("docs/a.md", "docs/secret/b.md", "docs/.gitignore")
    scandir, open_path = os.scandir, Path.open

    def refusing_scandir(path: Path) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refusing_open(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.name == ".gitignore":
            raise PermissionError(13, "Permission denied", str(self))
        return open_path(self, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    monkeypatch.setattr(Path, "open", refusing_open)
    documents, errors, _ = find(["docs"], cwd=here)
    assert [document.name for document in documents] == ["docs/a.md"]
    ignore, secret = map(str, errors)
    assert "docs/.gitignore: permission denied" in ignore
    assert "docs/secret: cannot be listed (Permission denied)" in secret
    assert "change its permissions" in secret


def test_a_tree_deeper_than_python_recurses(tree: Any) -> None:
    here = tree("a.md")
    deep = here
    for _ in range(1100):
        deep = deep / "d"
        deep.mkdir()
    (deep / "b.md").write_text("text")
    try:
        assert names(["."], here) == ["a.md", "d/" * 1100 + "b.md"]
    finally:  # pytest's own clean-up recurses
        (deep / "b.md").unlink()
        os.removedirs(deep)
