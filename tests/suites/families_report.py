"""The page about all families: which give the same answers from a cache, and which are refused, and why."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import transformers

from docsgen.markdown import code, table
from tests.suites.architectures import ARCHITECTURES
from tests.suites.families import BROKEN, EQUAL, REFUSED, WRONG, Verdict, verdict

INTRO = """# Families tried

`make families` writes this page. It makes a tiny random model of every causal language model that transformers
{version} has, {n} in all, and asks two questions about two documents: over the cache and without it, each alone, both together,
and after both caches in one pass, as the server does. Answers must be equal token by token, and logits up to the order of
summation. A family that kvtool cannot cache must be refused.

{counts}."""

OF_EQUAL = """## Equal answers

{names}

A tiny model has the layers that its configuration has by default, or attention alone. A model of the same family with other
layers is refused: most models of LFM2 have convolutions."""


def run() -> list[Verdict]:
    verdicts = []
    for number, name in enumerate(ARCHITECTURES, 1):
        verdicts.append(verdict(name))
        print(f"{number}/{len(ARCHITECTURES)} {name}: {verdicts[-1].state}", file=sys.stderr)
    return verdicts


def page(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.state for verdict in verdicts)
    summary = ", ".join(f"{counts[state]} {state}" for state in (EQUAL, REFUSED, WRONG, BROKEN))
    intro = INTRO.format(version=transformers.__version__, n=len(verdicts), counts=summary)
    names = ", ".join(code(verdict.family) for verdict in verdicts if verdict.state == EQUAL)
    blocks = [intro, OF_EQUAL.format(names=names)]
    for state, title in ((REFUSED, "Refused"), (WRONG, "Wrong answers"), (BROKEN, "Other errors")):
        rows = [(code(v.family), v.reason) for v in verdicts if v.state == state]
        if rows:
            blocks += [f"## {title}", table(("family", "reason"), rows)]
    return "\n\n".join(blocks) + "\n"


def passes(verdicts: Sequence[Verdict]) -> bool:
    return {verdict.state for verdict in verdicts} <= {EQUAL, REFUSED}
