"""Families of models by name: equal answers from a cache, or a refusal. ``make families`` tries all that there are."""

from __future__ import annotations

import re

import pytest

from docsgen.reference.support import ROOT
from tests.suites import architectures, families_report
from tests.suites.architectures import ARCHITECTURES
from tests.suites.families import BROKEN, EQUAL, REFUSED, WRONG, Verdict, verdict

# Besides those of tests/families.py, and of tests/engines/test_families.py, which are tried more thoroughly there.
CACHED = (
    "cohere2",
    "deepseek_v2",
    "exaone4",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma4_text",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gptj",
    "granite",
    "granitemoe",
    "minicpm3",
    "mixtral",
    "nemotron",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)
UNCACHED = {
    "bart": "is an encoder-decoder",
    "bert": "lets tokens see later ones",
    "blt": "does not say of what kind its layers are",
    "gpt_neo": "its place in the cache",
    "llama4": "layers of kind chunked_attention",
    "moshi": "a sliding window that its code does not apply",
    "openai-gpt": "cached [0] in its layers",
    "qwen3_next": "layers of kind linear_attention",
    "xlnet": "its place in the cache",
    "zamba2": "layers of kind hybrid",
}


@pytest.mark.parametrize("family", CACHED)
def test_answers_from_a_cache_are_those_without_it(family: str) -> None:
    assert verdict(family) == Verdict(family, EQUAL)


@pytest.mark.parametrize("family", UNCACHED)
def test_what_cannot_be_cached_is_refused(family: str) -> None:
    _, state, reason = verdict(family)
    assert state == REFUSED
    assert UNCACHED[family] in reason


def test_a_family_that_cannot_be_run_on_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its forward asks for a language, and says so with a ValueError.
    monkeypatch.setitem(architectures.OPTIONS, "xmod", {"languages": ["en_XX"]})
    _, state, reason = verdict("xmod")
    assert (state, reason.partition(" (")[0]) == (
        REFUSED,
        "xmod cannot be run on token ids and a cache alone",
    )


def test_the_page_names_every_family() -> None:
    page = (ROOT / "docs/results/families.md").read_text()
    named = re.findall(r"`([\w-]+)`", page.partition("## Equal answers")[2])
    assert sorted(named) == ARCHITECTURES, "run `make families`, which writes this page"


def test_wrong_answers_and_other_errors_fail() -> None:
    results = [Verdict("a", EQUAL), Verdict("b", REFUSED, "has layers of kind x")]
    assert families_report.passes(results)
    for state in (WRONG, BROKEN):
        failed = [*results, Verdict("c", state, "logits after a cache")]
        assert not families_report.passes(failed)
        assert "| `c` | logits after a cache |" in families_report.page(failed)
