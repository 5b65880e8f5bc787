"""kvtool ask: answer questions over cached documents."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.completion import complete_documents, complete_variants
from kvtool.commands.options import AsJson, ModelFlags, given, load_model, with_settings
from kvtool.counts import counted, parse_share
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.ask import Answer, Answers
    from kvtool.config import Settings
    from kvtool.model.model import Model


QUEST = "quest"
"""The variant that is read in part, unless another is named: the recipe's own."""


def _list_policies(wanted: bool) -> None:
    if wanted:
        from kvtool.blending.policies import DEFAULT, POLICIES

        rows = [(name, policy.about) for name, policy in POLICIES.items()]
        for line in output.table(rows):
            typer.echo(f"{line} (default)" if line.split()[0] == DEFAULT else line)
        raise typer.Exit


@with_settings(ModelFlags)
def run(
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION…", help="Answer this question or, together, these.")
    ],
    doc: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[@VARIANT]",
            help="Ask this document, by its name in the store; repeat it for several in one prompt, in any order.",
            autocompletion=complete_documents,
        ),
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            help="Load this variant: raw, or a compressed one by its name (default: raw, or quest with --read).",
            autocompletion=complete_variants,
        ),
    ] = None,
    segment: Annotated[
        int | None, typer.Option(help="Take this segment of a long document (default: all, blended).")
    ] = None,
    recompute: Annotated[
        float | None,
        typer.Option(help="Recompute this share of several documents' tokens, 0 to 1 (default: 0.15)."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Choose the recomputed tokens by this policy; --policies lists them.",
        ),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Put this text between documents (default: an empty line).")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Answer in at most this many tokens.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sample at this temperature; 0 is greedy.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens that together have this probability."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from this many of the likeliest tokens.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Sample from tokens with at least this share of the likeliest one's probability."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable, by this seed.")] = None,
    read: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Read this share of the document, such as 25%: what the question needs most. For the recipe quest.",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Prefill the documents now, without their caches.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run without the cache afterwards too, and give both times.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a timeline of the work to this file, for Perfetto or chrome://tracing."),
    ] = None,
    policies: Annotated[
        bool,
        typer.Option(
            "--policies", is_eager=True, callback=_list_policies, help="List the policies and exit."
        ),
    ] = False,
    *,
    settings: Settings,
    as_json: AsJson = False,
) -> None:
    """Ask a question about documents, from their caches.

    Several documents are blended: each is moved to its place in the prompt, and a few tokens are recomputed. The answer
    streams to stdout; the times go to stderr.
    """
    from kvtool.ask import ask, ask_each
    from kvtool.blending.blend import BlendOptions
    from kvtool.blending.layout import chosen_document
    from kvtool.blending.record import outdated_blends
    from kvtool.engines.sampling import Sampling
    from kvtool.store.open import open_store
    from kvtool.system.trace import Trace

    for question in questions:
        try:
            question.encode()
        except UnicodeEncodeError:
            raise UsageError(f"question {question!r}", "is not UTF-8", "expected text in UTF-8") from None
    options = BlendOptions(**given(recompute=recompute, policy=policy))
    if recompute is not None and options.recompute != recompute:
        reason = f"policy {options.policy!r} always has {options.recompute:g}"
        raise UsageError(f"--recompute {recompute:g}", reason, "leave one of the two out")
    if trace is not None and no_cache:
        raise UsageError("--trace", "shows how caches are read", "leave it out with --no-cache")
    limits = given(top_p=top_p, top_k=top_k, min_p=min_p)
    for flag, share in (("--top-p", top_p), ("--min-p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"{flag} {share:g}", "is no share", "expected a number above 0, up to 1")
    if not temperature >= 0:
        raise UsageError(
            f"--temperature {temperature:g}", "is no temperature", "expected a number, 0 or more"
        )
    if limits and not temperature:
        names = " and ".join("--" + name.replace("_", "-") for name in limits)
        raise UsageError(
            names, "says how to sample, and greedy answers are not sampled", "give --temperature"
        )
    if len(questions) > 1 and (temperature or seed is not None or no_cache or compare):
        remedy = "ask one at a time with --temperature, --seed, --no-cache or --compare"
        raise UsageError(f"{len(questions)} questions", "are answered greedily, from the cache", remedy)
    share = None if read is None else _share_read(read)
    if share is not None and (len(questions) > 1 or len(doc) > 1 or no_cache):
        raise UsageError(f"--read {read}", "is for one question about one document, from its cache")
    if variant is None:
        variant = "raw" if share is None else QUEST
    store = open_store(settings.store, existing=True)
    documents = [chosen_document(store, name, segment) for name in doc]
    output.print_warnings(outdated_blends(store, [document.name for document in documents]))
    model = load_model(settings)
    timeline = Trace()
    sampling = Sampling(temperature, seed=seed, **limits)
    blending = {"variant": variant, "options": options, **given(separator=separator)}

    if len(questions) > 1:
        answers = ask_each(
            questions, documents, model, store, max_tokens=max_tokens, trace=timeline, **blending
        )
        if trace is not None:
            timeline.write(trace)
        output.emit(answers.to_json(), render_several(answers), as_json)
        return

    def stream(text: str) -> None:
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    once = functools.partial(ask, questions[0], documents, model, store, sampling=sampling, **blending)
    answer = once(cached=not no_cache, max_tokens=max_tokens, on_text=stream, trace=timeline, read=share)
    if not as_json:
        typer.echo()
    if trace is not None:
        timeline.write(trace)
    other = None
    if compare:
        # Whatever a first run alone has to do, such as reading files from the disk, is done now for both.
        again = once(cached=not no_cache, max_tokens=1, read=share)
        other = once(cached=no_cache, max_tokens=1)
        answer = answer.timed_as(again)
    lines = render_uncached(answer, other) if no_cache else render(answer, other, model)
    output.emit(answer.to_json(other), lines, as_json)


def _share_read(text: str) -> float:
    """The share that ``--read`` names. Raises ``UsageError`` for anything else."""
    share = parse_share(text)
    if math.isnan(share):
        raise UsageError(
            f"--read {text}", "is no share of a document", "expected one up to 100%, as 25% or 0.25"
        )
    return share


def render(answer: Answer, uncached: Answer | None, model: Model) -> output.Lines:
    """The times of an answer whose text has been streamed."""
    from kvtool.model.prefill_speed import recall

    variants = " and ".join(dict.fromkeys(answer.variants))
    recomputed = f", {answer.recomputed_tokens} of them recomputed" if answer.recomputed_tokens else ""
    line = (
        f"first token after {answer.first_token_seconds:.2f} s from the {variants} cache "
        f"({counted(answer.cached_tokens, 'token')}{recomputed})"
    )
    if answer.read:
        line += f"; read {output.size(answer.read.nbytes)} of {output.size(answer.read.stored_nbytes)}"
    if uncached:
        seconds = uncached.first_token_seconds
        line += f"; {seconds:.2f} s without it: {faster(answer, seconds)}"
    elif rate := recall(model.fingerprint):
        seconds = answer.prompt_tokens / rate
        line += f"; without it about {seconds:.1f} s, at the last prefill's {rate:,.0f} tokens a second"
        if seconds < answer.first_token_seconds:
            line += f": {faster(answer, seconds)}"
    else:
        line += "; --compare measures it without"
    return output.Lines(notes=[line])


def faster(answer: Answer, uncached_seconds: float) -> str:
    """How many times as fast the cache was; where it was slower, why, and from how many tokens on it is faster."""
    ratio = uncached_seconds / answer.first_token_seconds
    if ratio >= 1:
        return f"{ratio:.{0 if ratio >= 2 else 1}f}× faster"
    prefill, load = uncached_seconds / answer.prompt_tokens, answer.load_seconds / answer.cached_tokens
    if load >= prefill:
        return "slower, since loading these tokens takes longer than prefilling them on this machine"
    tokens = (answer.first_token_seconds - answer.load_seconds) / (prefill - load)
    return f"slower, since so few tokens save less than a cache costs; it pays from about {tokens:,.0f} tokens on"


def render_uncached(answer: Answer, cached: Answer | None) -> output.Lines:
    prefilled = f"{counted(answer.prompt_tokens, 'token')} prefilled"
    line = f"first token after {answer.first_token_seconds:.2f} s without the cache ({prefilled})"
    if cached:
        line += f"; {cached.first_token_seconds:.2f} s with it"
    return output.Lines(notes=[line])


def render_several(answers: Answers) -> output.Lines:
    summary = (
        f"{counted(len(answers.texts), 'answer')} in {answers.seconds:.2f} s, {answers.load_seconds:.2f} of them for the "
        "cache "
        f"({counted(answers.cached_tokens, 'token')}, {answers.recomputed_tokens} of them recomputed)"
    )
    lines: list[str] = []
    for question, answer in zip(answers.questions, answers.texts, strict=True):
        lines += [question, *answer.strip().split("\n"), ""]
    return output.Lines(lines, [summary])
