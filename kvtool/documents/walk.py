"""Walks a folder for documents. Files that git ignores, hidden files and kvtool's own stores are left out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from kvtool.documents.office.convert import missing_library
from kvtool.documents.read import read_bytes, shown
from kvtool.errors import DocumentError

IGNORE_FILES = (".gitignore", ".kvtoolignore")
STORE_MARKER = "kvtool-store.json"

# fmt: off
NOT_TEXT = frozenset((
    ".7z", ".a", ".aac", ".aiff", ".apk", ".arrow", ".avi", ".avif", ".bin", ".bmp", ".br", ".bz2",
    ".ckpt", ".class", ".cur", ".db", ".deb", ".dll", ".dmg", ".dylib", ".ear", ".eot", ".exe",
    ".feather", ".flac", ".flv", ".gguf", ".ggml", ".gif", ".gz", ".h5", ".hdf5", ".heic", ".heif",
    ".icns", ".ico", ".img", ".iso", ".jar", ".jp2", ".jpeg", ".jpg", ".jxl", ".lib", ".lz4", ".lzma",
    ".m4a", ".m4v", ".mid", ".midi", ".mkv", ".mov", ".mp3", ".mp4", ".mpeg", ".mpg", ".msi", ".npy",
    ".npz", ".o", ".obj", ".ogg", ".ogv", ".onnx", ".opus", ".otf", ".parquet", ".pickle", ".pkl", ".png",
    ".psd", ".pt", ".pth", ".pyc", ".pyd", ".pyo", ".rar", ".rlib", ".rpm", ".safetensors", ".so",
    ".sqlite", ".sqlite3", ".svg", ".svgz", ".swf", ".tar", ".tflite", ".tgz", ".tif", ".tiff", ".ttc",
    ".ttf", ".war", ".wasm", ".wav", ".webm", ".webp", ".whl", ".wma", ".wmv", ".woff", ".woff2", ".xcf",
    ".xz", ".zip", ".zst",
))
# fmt: on
"""Suffixes that a walk passes over: images, sound, video, fonts, archives, programs, weights, tables.

So are office documents, as long as the library that reads them is missing."""


@dataclass(frozen=True)
class Rules:
    """The ignore rules in force, outermost folder first; a later rule overrides an earlier one."""

    patterns: tuple[tuple[Path, tuple[GitIgnoreSpecPattern, ...]], ...] = ()

    def within(self, folder: Path, errors: list[DocumentError]) -> Rules:
        """These rules and those of ``folder``; an ignore file that cannot be read is an error entry."""
        patterns: list[GitIgnoreSpecPattern] = []
        for file in (folder / name for name in IGNORE_FILES):
            if not os.path.lexists(file):
                continue
            try:
                # Names that are not UTF-8 are surrogates in Python, so rules about them are too.
                lines = read_bytes(file).decode("utf-8-sig", "surrogateescape").split("\n")
            except DocumentError as error:
                errors.append(error)
                continue
            for line in lines:
                try:
                    patterns += GitIgnoreSpec.from_lines([line.rstrip("\r")]).patterns
                except ValueError:
                    continue  # git, too, passes over a line that is no pattern
        return Rules((*self.patterns, (folder, tuple(patterns)))) if patterns else self

    def ignore(self, path: Path, *, folder: bool) -> bool:
        for base, patterns in reversed(self.patterns):
            name = path.relative_to(base).as_posix()
            for pattern in reversed(patterns):
                if pattern.include is not None and _matches(pattern, name, folder=folder):
                    return pattern.include
        return False


def _matches(pattern: GitIgnoreSpecPattern, name: str, *, folder: bool) -> bool:
    """Whether the pattern is about this very entry, not about a folder that contains it.

    pathspec's own matching counts both, for names without a walk. In a walk, as in git's, folders have had
    their turn, and a ``!folder/`` must not bring back files that another rule ignores. The group ``ps_d`` of a
    pattern's regex is the slash after a folder's name.
    """
    if pattern.regex is None:  # a comment or an empty line
        return False
    match = pattern.regex.search(name)
    if match and not match.groupdict().get("ps_d"):
        return True
    ends = (m.end() for m in pattern.regex.finditer(name + "/") if m.groupdict().get("ps_d"))
    return folder and len(name) + 1 in ends


def rules_above(folder: Path, cwd: Path, errors: list[DocumentError]) -> Rules:
    """The rules that apply to ``folder``: from its git root, else from ``cwd``, down to its parent."""
    line = [folder, *folder.parents]
    roots = [place for place in line if os.path.lexists(place / ".git")] or [
        place for place in line if place == cwd
    ]
    rules = Rules()
    for place in reversed(line[1 : line.index(roots[0]) + 1] if roots else []):
        rules = rules.within(place, errors)
    # git never looks into an ignored folder. Naming one asks for its content.
    return Rules() if rules.ignore(folder, folder=True) else rules


def walk(top: Path, cwd: Path, errors: list[DocumentError], passed_over: Counter[str]) -> list[Path]:
    """The files below ``top`` that may be documents and can be read, sorted.

    Folders that cannot be read go to ``errors``. ``passed_over`` counts the entries that are left out, by reason or
    suffix; a folder counts once, whatever it holds.
    """
    files: list[Path] = []
    folders = [(top, rules_above(top, cwd, errors))]
    while folders:
        folder, above = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError as error:
            reason = f"cannot be listed ({error.strerror or error}); expected one you may read"
            errors.append(DocumentError(shown(folder), reason, "change its permissions or leave it out"))
            continue
        if any(entry.name == STORE_MARKER for entry in entries):
            passed_over["store"] += 1
            continue
        rules = above.within(folder, errors)
        for entry in entries:
            path = folder / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            # Office marks an open file with another whose name begins so.
            if entry.name.startswith((".", "~$")):
                passed_over["hidden"] += 1
            elif rules.ignore(path, folder=is_folder):
                passed_over["ignored"] += 1
            elif is_folder:
                folders.append((path, rules))
            elif (suffix := path.suffix.lower()) in NOT_TEXT or missing_library(suffix):
                passed_over[suffix] += 1
            else:
                try:
                    if stat.S_ISREG(entry.stat().st_mode):
                        files.append(path)
                    else:
                        passed_over["special"] += 1
                except OSError as error:
                    reason = f"cannot be opened ({error.strerror or error}); expected a file or a link to one"
                    errors.append(DocumentError(shown(path), reason, "mend the link or delete it"))
    return sorted(files)
