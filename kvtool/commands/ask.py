"""kvtool ask: a question over a cached document."""

from __future__ import annotations

import functools
import sys
from typing import Annotated, Optional

import typer

from . import common


def run(
    question: Annotated[str, typer.Argument(help="The question.")],
    doc: Annotated[str, typer.Option("--doc", help="The document, by its name in the store.")],
    variant: Annotated[str, typer.Option("--variant", help="raw, or a compressed variant's name.")] = "raw",
    segment: Annotated[
        Optional[int], typer.Option("--segment", help="Which segment of a long document.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of the answer, at most.")
    ] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Makes sampling repeatable.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prefill the document now instead.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Afterwards run without the cache too, and give both times.")
    ] = False,
    store: common.StoreOption = None,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    load_in: common.LoadInOption = None,
    adapter: common.AdapterOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Ask a question about one document, from its cache.

    The answer streams to stdout; the times go to stderr.
    """
    from ..ask import ask
    from ..config import settings
    from ..speed import recall
    from ..store import Store

    chosen = settings(store=store, model=model, device=device, dtype=dtype, load_in=load_in, adapter=adapter)
    opened = Store(chosen.store)
    opened[doc]
    loaded = common.load_model(chosen)

    def show(text: str) -> None:
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    once = functools.partial(
        ask,
        question,
        document=doc,
        model=loaded,
        store=opened,
        variant=variant,
        segment=segment,
        temperature=temperature,
        seed=seed,
    )
    answer = once(cached=not no_cache, max_tokens=max_tokens, on_text=show)
    if not as_json:
        typer.echo()
    other = once(cached=no_cache, max_tokens=1) if compare else None
    full = answer if no_cache else other
    if as_json:
        common.print_json(
            {
                "document": doc,
                "variant": None if no_cache else variant,
                "answer": answer.text,
                "answer_tokens": len(answer.token_ids),
                "prompt_tokens": answer.prompt_tokens,
                "cached_tokens": answer.cached_tokens,
                "load_seconds": round(answer.load_seconds, 4),
                "first_token_seconds": round(answer.first_token_seconds, 4),
                "first_token_seconds_without_cache": full and round(full.first_token_seconds, 4),
            }
        )
        return
    line = f"first token after {answer.first_token_seconds:.2f} s "
    if no_cache:
        line += f"without the cache ({answer.prompt_tokens} tokens prefilled)"
        line += f"; {other.first_token_seconds:.2f} s with it" if other else ""
    else:
        line += f"from the {variant} cache ({answer.cached_tokens} tokens)"
        if other:
            ratio = other.first_token_seconds / answer.first_token_seconds
            line += f"; {other.first_token_seconds:.2f} s without it: {ratio:.0f}× faster"
        elif rate := recall(loaded.fingerprint):
            seconds = answer.prompt_tokens / rate
            line += f"; without it about {seconds:.1f} s, at the last prefill's {rate:,.0f} tokens a second"
        else:
            line += "; --compare measures it without"
    common.say(line)
