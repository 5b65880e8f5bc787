"""kvtool ask: a question over cached documents."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kvtool.commands import common
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.ask import Answers


def _list_policies(wanted: bool) -> None:
    if wanted:
        from kvtool.blending.policies import DEFAULT, POLICIES

        for name, policy in POLICIES.items():
            typer.echo(f"{name:18} {policy.about}{' (default)' if name == DEFAULT else ''}")
        raise typer.Exit


def run(
    questions: Annotated[
        list[str],
        typer.Argument(metavar="QUESTION…", help="The question, or several, which are answered together."),
    ],
    doc: Annotated[
        list[str],
        typer.Option(
            "--doc",
            metavar="NAME[@VARIANT]",
            help="A document, by its name in the store; repeat it for several in one prompt, in any order.",
        ),
    ],
    variant: Annotated[str, typer.Option("--variant", help="raw, or a compressed variant's name.")] = "raw",
    segment: Annotated[
        Optional[int],
        typer.Option("--segment", help="Which segment of a long document (default: all, blended)."),
    ] = None,
    recompute: Annotated[
        Optional[float],
        typer.Option(
            "--recompute",
            help="Share of several documents' tokens that is computed anew: 0 to 1 (default: 0.15).",
        ),
    ] = None,
    policy: Annotated[
        Optional[str], typer.Option("--policy", help="Which tokens that are (kvtool ask --policies).")
    ] = None,
    between: Annotated[
        Optional[str], typer.Option("--between", help="Text between documents (default: an empty line).")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of the answer, at most.")
    ] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Makes sampling repeatable.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prefill the documents now instead.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Afterwards run without the cache too, and give both times.")
    ] = False,
    trace: Annotated[
        Optional[Path],
        typer.Option(
            "--trace", help="Write what was done when to this file, for Perfetto or chrome://tracing."
        ),
    ] = None,
    policies: Annotated[
        bool,
        typer.Option(
            "--policies", is_eager=True, callback=_list_policies, help="List the policies, and stop."
        ),
    ] = False,
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Ask a question about documents, from their caches.

    Several documents are blended: each is moved to its place in the prompt, and a few tokens are computed anew. The answer
    streams to stdout; the times go to stderr.
    """
    from kvtool.ask import ask, ask_each
    from kvtool.blending.blend import BlendOptions
    from kvtool.blending.layout import chosen_document
    from kvtool.config import settings
    from kvtool.model.prefill_speed import recall
    from kvtool.store.open import open_store
    from kvtool.system.trace import Trace

    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
    given = {"recompute": recompute, "policy": policy}
    how = BlendOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if recompute is not None and how.recompute != recompute:
        raise UsageError(
            f"--recompute {recompute:g}",
            f"policy {how.policy!r} always has {how.recompute:g}",
            "leave one of the two out",
        )
    if trace is not None and no_cache:
        raise UsageError("--trace", "shows how caches are read", "leave it out with --no-cache")
    opened = open_store(chosen.store)
    documents = [chosen_document(opened, name, segment) for name in doc]
    loaded = common.load_model(chosen)
    traced = Trace()
    read: dict[str, Any] = {"variant": variant, "options": how}
    if between is not None:
        read["separator"] = between

    def show(text: str) -> None:
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    if len(questions) > 1:
        if temperature or seed is not None or no_cache or compare:
            raise UsageError(
                f"{len(questions)} questions",
                "are answered greedily, from the cache",
                "ask one at a time with --temperature, --seed, --no-cache or --compare",
            )
        found = ask_each(questions, documents, loaded, opened, max_tokens=max_tokens, trace=traced, **read)
        if trace is not None:
            traced.write(trace)
        _show_each(found, as_json)
        return
    once = functools.partial(
        ask, questions[0], documents, loaded, opened, temperature=temperature, seed=seed, **read
    )
    answer = once(cached=not no_cache, max_tokens=max_tokens, on_text=show, trace=traced)
    if not as_json:
        typer.echo()
    if trace is not None:
        traced.write(trace)
    other = once(cached=no_cache, max_tokens=1) if compare else None
    if as_json:
        common.print_json(answer.to_json(other))
        return
    line = f"first token after {answer.first_token_seconds:.2f} s "
    if no_cache:
        line += f"without the cache ({answer.prompt_tokens} tokens prefilled)"
        line += f"; {other.first_token_seconds:.2f} s with it" if other else ""
    else:
        caches = " and ".join(dict.fromkeys(answer.variants))
        line += f"from the {caches} cache ({answer.cached_tokens} tokens"
        line += f", {answer.recomputed_tokens} of them recomputed)" if answer.recomputed_tokens else ")"
        if other:
            ratio = other.first_token_seconds / answer.first_token_seconds
            line += f"; {other.first_token_seconds:.2f} s without it: {ratio:.0f}× faster"
        elif rate := recall(loaded.fingerprint):
            seconds = answer.prompt_tokens / rate
            line += f"; without it about {seconds:.1f} s, at the last prefill's {rate:,.0f} tokens a second"
        else:
            line += "; --compare measures it without"
    common.say(line)


def _show_each(found: Answers, as_json: bool) -> None:
    if as_json:
        common.print_json(found.to_json())
        return
    for question, answer in zip(found.questions, found.texts, strict=True):
        typer.echo(f"{question}\n{answer.strip()}\n")
    common.say(
        f"{len(found.texts)} answers in {found.seconds:.2f} s, {found.load_seconds:.2f} of them for the cache "
        f"({found.cached_tokens} tokens, {found.recomputed_tokens} of them recomputed)"
    )
