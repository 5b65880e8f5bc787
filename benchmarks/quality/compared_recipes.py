"""Settings of kvtool's recipes that are compared."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.quality.method import OWN, Method

OWN_ADVICE = "The same, calibrated by `kvtool compress` itself, on the store's own documents."

RECIPES: Mapping[str, Method] = {
    "lossless": Method(
        authors={"lossless": "zstd's default level, 3."},
        kvtool={"lossless:level=19": "The highest of zstd's usual levels."},
        differs="There is no paper and no authors' code.",
    ),
    "quest": Method(
        authors={"quest": "Pages of 16 tokens, as in the paper. Read whole, nothing is lost."},
        kvtool={
            "quest:bits=8": "Pages in 8 bits.",
            "quest:bits=4": "Pages in 4 bits.",
        },
    ),
    "int8-blockwise": Method(
        authors={
            "int8-blockwise": "256 entries, what bitsandbytes' optimizers have.",
            "int8-blockwise:block=2048": "2,048 entries, as in the paper.",
        },
    ),
    "nf4": Method(
        authors={"nf4": "64 entries, as in the paper."},
        kvtool={"nf4:block=128": "Half as many scales."},
    ),
    "bfp": Method(
        authors={
            "bfp": "Mantissas of 4 bits in blocks of 32, one of the two sizes where the paper gains by its order.",
            "bfp:block=64": "Blocks of 64, the other one.",
        },
    ),
    "kivi": Method(
        authors={
            "kivi:bits=4": (
                "4 bits are what the authors advise for models with grouped heads, such as this one "
                "(docs/long_bench.md in jy-yuan/KIVI); groups of 32 and 128 recent tokens are those of their tables."
            ),
            "kivi:bits=2": "2 bits are what they advise for models without grouped heads (same file).",
            "kivi:bits=4:recent=32": "32 recent tokens, as in the authors' example.py.",
        },
        kvtool={
            "kivi:bits=4:recent=0": "Without the window, which dominates the bits of short texts.",
            "kivi:bits=2:recent=0": "Without the window, which dominates the bits of short texts.",
        },
    ),
    "think": Method(
        authors={
            "think": "40 % of the channels and 32 recent tokens, as in the authors' kv_pruning_utils.py."
        },
        kvtool={"think:drop=0.6": "More than half."},
    ),
    "gear": Method(
        authors={
            "gear": "GEAR in 2 bits, groups of 64, rank 4 and 2 % outliers: the authors' run_template_llama-3-8b.sh.",
            "gear:outliers=0": "GEAR-L, without outliers: the same script.",
            "gear:bits=4:group=65536": "GEAR-KCVT, one scale for a whole channel or token, in 4 bits: the same script.",
        },
    ),
    "kvquant": Method(
        authors={
            "kvquant:bits=4": "4 bits with 1 % outliers, one of the paper's three widths.",
            "kvquant": "3 bits with 1 % outliers, the paper's main result.",
            "kvquant:bits=2:qnorm=on": "2 bits, where the paper uses Q-Norm.",
        },
        kvtool={"kvquant:weights=none": "Without a calibration: all entries count alike."},
    ),
    "zipcache": Method(
        authors={
            "zipcache": "60 % of the tokens in 4 bits, the others in 2: the authors' zipcache_generation_demo.py."
        },
        kvtool={"zipcache:salient=80": "A larger share in 4 bits."},
    ),
    "mikv": Method(
        authors={
            "mikv": "20 % of the tokens in 8 bits, the others in 2: one of the settings that the paper varies.",
            "mikv:bits=4": "The others in 4 bits, the other end of the paper's range.",
        },
        kvtool={"mikv:group=0": "One scale for each head instead of one for every 32 channels."},
    ),
    "rotatekv": Method(
        authors={
            "rotatekv": "2 bits, the authors' switch RotateKV2 (utils.py in ZunhaiSu/RotateKV).",
            "rotatekv:bits=3": "3 bits, their switch RotateKV3.",
            "rotatekv:bits=4": "4 bits, their switch RotateKV4.",
        },
        kvtool={"rotatekv:clip=1": "2 bits without the authors' clip of 0.8."},
    ),
    "turboquant": Method(
        authors={
            "turboquant:bits=2.25": "A quarter of the channels in 3 bits, the others in 2: what the paper calls 2.5 bits.",
            "turboquant:bits=3.25": "A quarter in 4 bits, the others in 3: what it calls 3.5 bits.",
            "turboquant:objective=prod": "3 bits in the paper's variant for inner products.",
        },
        kvtool={
            "turboquant": "3 bits in the paper's variant for the least error, which is better here.",
            "turboquant:bits=2.5": "Half of the channels with one bit more, which is 2.5 bits by count.",
            "turboquant:bits=3.5": "The same at 3.5 bits.",
        },
    ),
    "cachegen": Method(
        authors={
            "cachegen:group=10:level=4": "With anchors in groups of 10 tokens, as in the paper. The levels are kvtool's.",
        },
        kvtool={
            "cachegen": "kvtool's default: without anchors, as in the authors' code, at the second of five levels.",
            "cachegen:level=1": "The finest level.",
            "cachegen:level=5": "The coarsest level.",
        },
    ),
    "cachegen-lmcache": Method(
        authors={"cachegen-lmcache": "LMCache's numbers of bins for a model that it does not know by name."},
        kvtool={
            "cachegen-lmcache:sinks=4": "The first four tokens in 16 bits, which LMCache does not keep apart."
        },
    ),
    "minicache": Method(
        authors={
            "minicache": "Layers merged from the middle on, 5 % of the tokens kept, 4 bits: the paper's best compression.",
            "minicache:bits=0": "Merged only, as in the paper's first experiments.",
        },
    ),
    "xkv": Method(
        authors={
            "xkv": "Four layers, ranks of 1/8 and 3/16: the authors' first commands (README.md in abdelfattah-lab/xKV).",
            "xkv:rank_keys=0.09375:rank_values=0.140625": "Ranks of 3/32 and 9/64, from their later commands.",
        },
        kvtool={"xkv:bits=4": "Coefficients in 4 bits, as in one of the paper's experiments."},
    ),
    "kvtc": Method(
        authors={
            "kvtc:ratio=16": (
                "The ratio up to which the paper stays within a point of the raw cache; the first 4 tokens and the last "
                "128 whole."
            ),
            "kvtc:ratio=32": "The next ratio in the paper.",
        },
        kvtool={
            "kvtc:ratio=16:recent=0": "Without the window, which dominates the bits of short texts.",
            "kvtc:ratio=32:recent=0": "Without the window, which dominates the bits of short texts.",
            f"kvtc:ratio=16{OWN}": OWN_ADVICE,
        },
    ),
    "klt": Method(
        authors={
            "klt:step=0.02": "A finer setting of kvtool's own recipe.",
            "klt:step=0.075": "kvtool's preset `balanced` where nothing was measured.",
            "klt:step=0.15": "kvtool's preset `small` where nothing was measured.",
            f"klt:step=0.02{OWN}": OWN_ADVICE,
            f"klt:step=0.075{OWN}": OWN_ADVICE,
            f"klt:step=0.15{OWN}": OWN_ADVICE,
        },
        differs="kvtool is its authors' code.",
    ),
}
"""By recipe."""
