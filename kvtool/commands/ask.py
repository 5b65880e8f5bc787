"""kvtool ask: a question over a cached document."""

from __future__ import annotations

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

    def answer(cached: bool, tokens: int, shown: bool):  # type: ignore[no-untyped-def]
        return ask(
            question,
            document=doc,
            model=loaded,
            store=opened,
            variant=variant,
            segment=segment,
            max_tokens=tokens,
            temperature=temperature,
            seed=seed,
            cached=cached,
            on_text=show if shown else lambda _: None,
        )

    main = answer(not no_cache, max_tokens, True)
    if not as_json:
        typer.echo()
    other = answer(no_cache, 1, False) if compare else None
    full = main if no_cache else other
    if as_json:
        common.print_json(
            {
                "document": doc,
                "variant": None if no_cache else variant,
                "answer": main.text,
                "answer_tokens": len(main.token_ids),
                "prompt_tokens": main.prompt_tokens,
                "cached_tokens": main.cached_tokens,
                "load_seconds": round(main.load_seconds, 4),
                "first_token_seconds": round(main.first_token_seconds, 4),
                "first_token_seconds_without_cache": full and round(full.first_token_seconds, 4),
            }
        )
        return
    if no_cache:
        line = f"first token after {main.first_token_seconds:.2f} s, without the cache ({main.prompt_tokens} tokens prefilled)"
        if other:
            line += f"; {other.first_token_seconds:.2f} s with it"
    else:
        line = f"first token after {main.first_token_seconds:.2f} s from the {variant} cache ({main.cached_tokens} tokens)"
        if other:
            ratio = other.first_token_seconds / main.first_token_seconds
            line += f"; {other.first_token_seconds:.2f} s without it: {ratio:.0f}× faster"
        elif rate := recall(loaded.fingerprint):
            line += f"; without it about {main.prompt_tokens / rate:.1f} s, at the last prefill's {rate:,.0f} tokens a second"
        else:
            line += "; --compare measures it without"
    common.say(line)
