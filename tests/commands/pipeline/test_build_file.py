"""What a build file, and a lock, may not say: it is refused before anything is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.errors import USAGE
from kvtool.store.local import LocalStore
from tests.commands.conftest import Cli, error_of

Edit = Callable[[str, str], None]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("documents =", "document =", r"unknown key build.document; did you mean documents\?"),
        ("bits = 4", "bist = 4", r"unknown key build.variants.0.bist; did you mean bits\?"),
        ("max_kl", "max_lk", r"unknown key build.variants.1.gate.max_lk; did you mean max_kl\?"),
        ("context = 128", "kontext = 1", r"unknown key build.measure.kontext; did you mean context\?"),
        ("0.01", '"much"', "build.variants.1.gate.max_kl: input should be a valid number"),
        ('["manual"]', "[]", "build.documents: tuple should have at least 1 item"),
        ('recipe = "lossless"', 'recipe = "kivi"', "variant kivi: is there twice"),
        *(
            ("[build.measure]", f"[[build.blends]]\n{blend}\n[build.measure]", message)
            for blend, message in (
                ("", "build.blends.0.gate: field required"),
                ("gate = {}", "gate of blend of raw: has no limit; give one of max_kl, "),
                ("gate = { max_lk = 1 }", r"unknown key build.blends.0.gate.max_lk; did you mean max_kl\?"),
                (
                    "gate = { min_retrieval = 1 }",
                    "build.blends.0.gate.min_retrieval; it is a limit of variants, and not measured of blends; known are max_kl",
                ),
                ('variants = "kivi"', r"unknown key build.blends.0.variants; did you mean variant\?"),
                (
                    'variant = "kivvi"\ngate = { max_kl = 1 }',
                    r"kivvi is no variant of this file; did you mean kivi\?",
                ),
                (
                    "gate = { max_kl = 1 }\n[[build.blends]]\ngate = { max_kl = 2 }",
                    "blend of raw: is there twice",
                ),
            )
        ),
        ('store = "kv"', 'store = "s3://bucket"', "store s3:/.*: is read only"),
        ("[build]", "[build", "kvtool.toml: is not TOML"),
    ],
)
def test_a_wrong_file_is_refused(cli: Cli, edit: Edit, old: str, new: str, message: str) -> None:
    edit(old, new)
    assert re.search(message, error_of(cli("build", code=USAGE)))


def test_without_a_table_there_is_nothing_to_build(corpus: Path, cli: Cli) -> None:
    assert "kvtool init writes a first file" in error_of(cli("build", code=USAGE))
    (corpus / "pyproject.toml").write_text(
        '[tool.kvtool]\nstore = "kv"\n[tool.kvtool.build]\ndocuments = ["docs"]\n'
    )
    cli("build")
    assert list(LocalStore(corpus / "kv")) == ["docs/a.md", "docs/b.md"]


LOCKED = '{"format": 1, "model": {}, "settings": {}, "documents": {}, "variants": {}}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 99}',
        LOCKED.replace('"variants": {}', '"variants": {"klt": {}}'),
        LOCKED.replace('"settings": {}', '"settings": null'),
        LOCKED.replace('"documents": {}', '"documents": {"a": {"source": "x", "segments": [{}]}}'),
        LOCKED.replace('"variants": {}', '"variants": {}, "gates": {"klt": {"of": "x"}}'),
    ],
)
def test_what_is_no_lock_is_refused(project: Path, cli: Cli, text: str) -> None:
    (project / "kvtool.lock").write_text(text)
    assert "kvtool.lock: is " in error_of(cli("build", code=USAGE))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('recipe = "kivi"', 'recipe = "kivvi"', "build.variants: kivvi: no recipe is called 'kivvi'"),
        ("bits = 4", "bits = 4\nratio = 3", "build.variants: kivi: "),
        ("bits = 4", "bits = 4\nset = { bits = 2 }", r"variant kivi: set.bits: is a key of its own"),
        ("bits = 4", "bits = 4\nset = { model = 2 }", r"build.variants: kivi: set.model: is no parameter"),
        ("context = 128", "context = -1", "--context -1"),
        ("[build]", '[build]\npush = "ftp://x"', "store ftp://x: cannot be written to"),
        ("[build]", '[build]\nreport = "no/such/page.html"', "build.report .*: is in no directory"),
        *(
            ("[build.measure]", f"[[build.blends]]\n{blend}\n[build.measure]", message)
            for blend, message in (
                ("gate = { min_answers = 0.5 }", "gate min_answers: needs questions to answer"),
                ('policy = "drfit"\ngate = { max_kl = 1 }', "drfit"),
                ("recompute = 2\ngate = { max_kl = 1 }", "recompute 2"),
            )
        ),
        (
            'recipe = "kivi"\nbits = 4\n',
            'recipe = "kvzip+kivi"\nkeep = 0.5\nname = "half"\n[[build.blends]]\nvariant = "half"\ngate = { max_kl = 1 }\n',
            "gate of blend of half: cannot be measured: half leaves out tokens",
        ),
        (
            '["manual"]',
            '["manual/a.md"]\n[[build.blends]]\ngate = { max_kl = 1 }',
            "gate of blend of raw: cannot be measured: build.documents is one document",
        ),
        (
            'recipe = "lossless"',
            'recipe = "lossless"\nsource = "averaged"',
            "gate of variant lossless-averaged",
        ),
    ],
)
def test_what_no_build_could_do_is_said_first(cli: Cli, edit: Edit, old: str, new: str, message: str) -> None:
    edit(old, new)
    for command in (["build"], ["build", "--dry-run"]):
        result = cli(*command, code=USAGE)
        assert re.search(message, error_of(result))
        assert "prefill" not in result.stderr.replace("kvtool prefill", "")


def test_a_gate_that_cannot_be_measured(project: Path, cli: Cli, edit: Edit) -> None:
    edit("{ max_kl = 0.01 }", "{ min_answers = 0.5 }")
    assert "needs questions to answer" in error_of(cli("build", code=USAGE))
    assert not (project / "kvtool.lock").exists()
