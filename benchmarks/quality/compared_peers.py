"""Settings of other tools that are compared."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.quality.method import Method

QUANTIZED = (
    "Nothing: it is the tool itself. It has no format for files, so its codes, scales and zero points are counted as they "
    "are in memory. A prefill is quantized whole: its window of recent tokens fills only while tokens are generated."
)

KVPRESS = (
    "Nothing: it is the tool itself. It prunes while it prefills, the shared prefix too, and sees no question. Kept keys "
    "and values are counted with 16 bits; it has no format for files."
)


def _ratios(press: str) -> Mapping[str, str]:
    return {
        f"{press}:ratio=0.25": "kvpress compares presses at several ratios and advises none; its default drops nothing.",
        f"{press}:ratio=0.5": "Half of the tokens.",
    }


PEERS: Mapping[str, Method] = {
    "lmcache-cachegen": Method(
        authors={
            "lmcache-cachegen:chunk=256": "LMCache's default chunk (`chunk_size` in its configuration)."
        },
        kvtool={
            "lmcache-cachegen:chunk=1024": "A chunk of all 1,024 tokens, with one table instead of four."
        },
        differs=(
            "Nothing: it is LMCache's own serializer, on the CPU; its code for GPUs is another. A last chunk that is "
            "shorter is encoded too, where LMCache leaves it to be computed again."
        ),
        peer="cachegen_lmcache",
    ),
    "transformers-quanto": Method(
        authors={
            "transformers-quanto:bits=4": "The default of `QuantizedCache`, with both axes 0 as its documentation advises.",
            "transformers-quanto:bits=2": "Its other width, with both axes 0 as its documentation advises.",
        },
        kvtool={
            "transformers-quanto:bits=2:axis_key=-1": "Keys by channel, as in KIVI, which loses less at 2 bits."
        },
        differs=QUANTIZED,
        peer="quantized_cache",
    ),
    "transformers-hqq": Method(
        authors={
            "transformers-hqq:bits=4": "The default width, with both axes 1 as transformers' documentation advises.",
            "transformers-hqq:bits=2": "A smaller width, with both axes 1 as transformers' documentation advises.",
        },
        differs=QUANTIZED,
        peer="quantized_cache",
    ),
    "tiny-turboquant": Method(
        authors={
            "tiny-turboquant:compression=safe": 'The default preset, "best quality" in its README: 4 bits.',
            "tiny-turboquant:compression=balanced": "The preset that its README recommends: keys in 4 bits, values in 3.",
        },
        kvtool={
            "tiny-turboquant:compression=safe:residual_len=0": (
                "Without its window of 128 to 255 tokens, which is much of a short text."
            )
        },
        differs=(
            "Nothing: it is the tool itself, and its bytes are those that its `memory_report` counts. Despite its name its "
            "cache is KIVI's scheme. It has no format for files."
        ),
        peer="turboquant",
    ),
    "kvpress-snapkv": Method(kvtool=_ratios("kvpress-snapkv"), differs=KVPRESS, peer="presses"),
    "kvpress-expected-attention": Method(
        kvtool=_ratios("kvpress-expected-attention"), differs=KVPRESS, peer="presses"
    ),
}
"""By the name of the tool's method. Each tool has its own requirements and script in ``benchmarks/peers``."""
