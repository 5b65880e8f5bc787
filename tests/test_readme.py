"""The commands of the README and the tutorial are run, and print what these pages say, up to times and a tenth of sizes.

Sizes and measurements may be off by a tenth, since processors differ. ``KVTOOL_UPDATE_README=1`` writes what the commands
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

# Seconds, rates and speed-ups are the machine's; the folder of the store is this run's.
MEASURED = [
    (re.compile(r"\d[\d,.]* s\b"), "# s"),
    (re.compile(r"\(\d[\d,]* a second\)"), "(# a second)"),
    (re.compile(r"\d[\d,]* tokens a second"), "# tokens a second"),
    (re.compile(r"\d+× faster"), "#× faster"),
    (re.compile(r"\S*/kv-store"), "kv-store"),
]
# The embedded model's last bits, and so digests and what compresses losslessly, may differ between processors.
MEASURED_ON_OTHER_PROCESSORS = [(re.compile(r"kv-store/artifacts/\w\w/\w{64}"), "kv-store/artifacts/#")]

pytestmark = pytest.mark.slow


def normal(text: str) -> str:
    for pattern, replacement in [*MEASURED, *MEASURED_ON_OTHER_PROCESSORS]:
        text = pattern.sub(replacement, text)
    return text


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
COUNTED = re.compile(r"\d\d?")
"""Numbers of documents and the like, which are right or wrong."""


def assert_prints(printed: str, said: str) -> None:
    printed, said = normal(printed), normal(said)
    # A column is as wide as what stands in it.
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", said).split()
    for now, then in zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True):
        if COUNTED.fullmatch(now) and COUNTED.fullmatch(then):
            assert now == then, f"{now} is printed, the README says {then}:\n{printed}"
        else:
            about = pytest.approx(float(then.replace(",", "")), rel=0.1)
            assert float(now.replace(",", "")) == about, (
                f"{now} is printed, the README says {then}:\n{printed}"
            )


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("done 11 documents, 36,316 tokens, 166.1 MB", True),
        ("done 12 documents, 36,289 tokens, 167.2 MB", False),
        ("done 11 documents, 46,289 tokens, 167.2 MB", False),
        ("done 11 documents, 36,289 tokens, 167.2 GB", False),
    ],
)
def test_sizes_may_be_off_by_a_tenth_and_nothing_else(printed: str, same: bool) -> None:
    said = "done  11 documents, 36,289 tokens, 167.2 MB"
    if same:
        assert_prints(printed, said)
    else:
        with pytest.raises(AssertionError):
            assert_prints(printed, said)


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
            if not line.startswith(("prefilling: ", "evaluating: "))
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
    """Every block of the page prints what the page says, or is updated."""
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
