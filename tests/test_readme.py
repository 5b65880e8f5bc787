"""The commands of the README and the tutorial are run, and print what these pages say, up to times.

The examples work on the texts in samples/, which stay as they are. ``KVTOOL_UPDATE_README=1`` writes what the commands
print now.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial/first-steps.md"
UPDATE = bool(os.environ.get("KVTOOL_UPDATE_README"))
# What a user has: neither other tests' settings nor their empty cache directory.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("KVTOOL_")}
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)

# Seconds, rates and speed-ups are the machine's; where a file lies is this run's.
MEASURED = [
    (re.compile(r"\d[\d,.]* s\b"), "# s"),
    (re.compile(r"\(\d[\d,]* a second\)"), "(# a second)"),
    (re.compile(r"\d[\d,]* tokens a second"), "# tokens a second"),
    (re.compile(r"[\d.]+× faster"), "#× faster"),
    (re.compile(r"\S*/kv-store"), "kv-store"),
]
# Processors round the embedded model's last bits differently. Digests are then others, what is entropy coded takes some
# bytes more or less, and so does all that is measured on the model: none of it may be off by more than a tenth.
DIGEST = (re.compile(r"\b([0-9a-f]{2}/)?[0-9a-f]{64}\b"), "#digest")
ROUNDED = re.compile(r"\b(cachegen|klt|lossless)\b")
ROUNDED_COMMAND = re.compile(r"\$ kvtool eval\b")

pytestmark = pytest.mark.slow


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
COUNTED = re.compile(r"\d\d?")
"""Numbers of documents and the like, which are right or wrong."""


def normal(line: str) -> str:
    for pattern, replacement in [*MEASURED, DIGEST]:
        line = pattern.sub(replacement, line)
    # A column is as wide as what stands in it.
    return " ".join(line.split())


def close(printed: str, expected: str) -> bool:
    """Whether two lines say the same up to a tenth of their larger numbers."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", expected):
        return False
    for one, other in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
        if COUNTED.fullmatch(one) and COUNTED.fullmatch(other):
            if one != other:
                return False
        elif float(one.replace(",", "")) != pytest.approx(float(other.replace(",", "")), rel=0.1):
            return False
    return True


def assert_prints(printed: str, expected: str) -> None:
    lines, expected_lines = printed.splitlines(), expected.splitlines()
    assert len(lines) == len(expected_lines), printed
    rounded = False
    for line, expected_line in zip(lines, expected_lines, strict=True):
        if line.startswith("$ "):
            rounded = bool(ROUNDED_COMMAND.match(line))
        now, then = normal(line), normal(expected_line)
        if rounded or ROUNDED.search(line):
            assert close(now, then), f"{line} is printed, the README says {expected_line}"
        else:
            assert now == then


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("kivi: compressed 5 documents in 1.9 s; 103.5 MB → 26.6 MB", True),
        ("kivi: compressed 6 documents in 0.9 s; 103.5 MB → 26.6 MB", False),
        ("kivi: compressed 5 documents in 0.9 s; 103.6 MB → 26.6 MB", False),
        ("kivi: compressed 5 documents in 0.9 s; 103.5 GB → 26.6 MB", False),
    ],
)
def test_times_may_differ_and_nothing_else(printed: str, same: bool) -> None:
    readme = "kivi:  compressed 5 documents in 0.9 s; 103.5 MB → 26.6 MB"
    if same:
        assert_prints(printed, readme)
    else:
        with pytest.raises(AssertionError):
            assert_prints(printed, readme)


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("cachegen: compressed 1 documents, 57.7 MB → 7.5 MB", True),
        ("cachegen: compressed 2 documents, 57.7 MB → 7.3 MB", False),
        ("cachegen: compressed 1 documents, 57.7 MB → 9.3 MB", False),
    ],
)
def test_what_is_entropy_coded_may_be_off_by_a_tenth(printed: str, same: bool) -> None:
    readme = "cachegen: compressed 1 documents, 57.7 MB → 7.3 MB"
    if same:
        assert_prints(printed, readme)
    else:
        with pytest.raises(AssertionError):
            assert_prints(printed, readme)


def run(commands: list[str], folder: Path) -> str:
    """The block that the commands give, in order: each command, then what it printed on both streams."""
    lines = []
    for command in commands:
        arguments = shlex.split(command)
        assert arguments[0] == "kvtool"
        done = subprocess.run(
            [sys.executable, "-m", "kvtool", *arguments[1:]],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        # Lines of progress come when a run takes long, and what an earlier run has measured is said.
        printed = [
            line
            for line in done.stdout.strip("\n").splitlines()
            if not line.startswith(("prefilling: ", "compressing: ", "evaluating: "))
            and "were kept from an earlier run" not in line
        ]
        lines += [f"$ {command}", *printed]
    return "\n".join(line.rstrip() for line in lines) + "\n"


@pytest.fixture(scope="module")
def folder(embedded: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the README works; the example in Python finds there what the commands have prefilled."""
    return with_samples(tmp_path_factory)


def with_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "samples", folder / "samples")
    return folder


def check(page: Path, folder: Path) -> None:
    """Every block prints what the page says, or is updated."""
    text, end = page.read_text(), 0
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 5
    pieces = []
    for block in blocks:
        commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
        printed = run(commands, folder)
        if not UPDATE:
            assert_prints(printed, block[1])
        pieces += [text[end : block.start(1)], printed]
        end = block.end(1)
    if UPDATE:
        page.write_text("".join(pieces) + text[end:])


def test_every_command_prints_what_the_readme_says(folder: Path) -> None:
    check(README, folder)


def test_every_command_prints_what_the_tutorial_says(
    embedded: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(TUTORIAL, with_samples(tmp_path_factory))


def test_the_python_example_runs(folder: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = f"{example}\nassert out.shape[1] > len(ids)"
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=ENVIRONMENT, check=True)
