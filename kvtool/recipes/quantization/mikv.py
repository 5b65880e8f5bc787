from __future__ import annotations

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.salient import SalientByHead
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.transform.balance import Balance
from kvtool.recipes import common


def mikv(bits: int, high: int, important: int, group: int, recent: int, sinks: int) -> Pipeline:
    """MiKV: No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision
    Quantization (Yang et al., 2024, arXiv 2402.18096).

    What an eviction policy would drop is kept in ``bits`` bits, the ``important`` percent of the tokens in
    ``high`` bits; each key head chooses its own. Keys and values are quantized per token, over ``group`` channels
    of a head; before that each key channel is multiplied by ``b = sqrt(max|q| / max|k|)``, which shares outliers
    out between queries and keys.

    What differs. The paper divides the queries by b while it decodes; kvtool undoes b when it decompresses,
    for an unchanged model. The paper takes importance from an eviction policy such as H2O, which sums
    attention and reserves a share for the latest tokens; here it is the normalised attention of probe tokens
    (see ZipCache). ``recent`` keeps the latest in 16 bits, 0 by default. Groups have 32 channels, half a head of
    the embedded model; with one scale for a whole head its KL is more than twice as large. Important tokens have
    8 bits at most, where the paper goes up to 16; it varies their share and both precisions, and 20 percent, 8
    and 2 bits are one such setting. max|q| is over the probe tokens' queries. Scale and zero are float16.
    ``high`` is at least ``bits``. Models that cache a latent (MLA) have no queries of the keys' size, and are
    refused. No code of the authors was found to compare with.
    """
    quantize = SalientByHead(important / 100, max(high, bits), bits, group, "channel")
    window = common.window(sinks, recent)
    return Pipeline(keys=(*window, Balance(), quantize, Pack()), values=(*window, quantize, Pack()))


RECIPE = Recipe(
    name="mikv",
    paper="2402.18096 No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed "
    "Precision Quantization",
    summary="attended tokens in 8 bits, the rest in 2, keys balanced",
    make=mikv,
    parameters={
        "bits": Parameter(2, range(1, 9), "bits per code of unimportant tokens; the paper has 2 to 4"),
        "high": Parameter(8, range(1, 9), "bits per code of important tokens, at least those of the others"),
        "important": Parameter(20, range(101), "percent of the tokens that are important"),
        "group": Parameter(32, range(1 << 16), "channels of a head that share a scale; 0 is all of them"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
