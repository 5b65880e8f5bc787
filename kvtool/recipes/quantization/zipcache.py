from __future__ import annotations

from typing import Literal

from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.salient import Salient, SalientByHead
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.transform.normalize import Normalize
from kvtool.recipes import common


def zipcache(bits: int, high: int, salient: int, choice: str, recent: int, sinks: int) -> Pipeline:
    """ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification (He et al.,
    2024, arXiv 2405.14256).

    The ``salient`` percent of the tokens with the highest normalised attention score in ``high`` bits, the
    rest in ``bits``; each key head chooses its own. The score is the attention that probe tokens pay to a token,
    the last 5 % and 5 % at random. Keys are quantized per channel, one scale for all tokens of a precision;
    values are "channel-separable tokenwise": channels divided by the root of their largest magnitude over all
    tokens, then one scale for each row of the channels of all heads. The authors' demo has 60 percent at 4 bits
    and the rest at 2.

    What differs. A token's score is divided by the number of probes that can see it; the authors' code divides by
    the number of all tokens from it on. The authors compress again every 100 decoded tokens, and keep newer ones
    in 16 bits; a finished prefix has no such tail, so ``recent`` is 0. Tokens of the prefix a document was
    prefilled under take part in the softmax, but are no probes. A segment of under 160 tokens has 8 probes of
    each kind. Scale and zero are float16. ``high`` is at least ``bits``. With ``choice`` "layer", all heads of a
    layer share one, by the mean of their scores: a few bytes less, and worse.
    """

    def quantize(axis: Literal["token", "heads"]) -> Salient:
        stage = SalientByHead if choice == "head" else Salient
        return stage(ratio=salient / 100, high=max(high, bits), low=bits, axis=axis)

    window = common.window(sinks, recent)
    return Pipeline(
        keys=(*window, quantize("token"), Pack()), values=(*window, Normalize(), quantize("heads"), Pack())
    )


RECIPE = Recipe(
    name="zipcache",
    paper="2405.14256 ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token "
    "Identification",
    summary="attended tokens in 4 bits, the rest in 2",
    make=zipcache,
    parameters={
        "bits": Parameter(2, range(1, 9), "bits per code of the tokens that are not salient"),
        "high": Parameter(4, range(1, 9), "bits per code of salient tokens, at least those of the others"),
        "salient": Parameter(60, range(101), "percent of the tokens that are salient"),
        "choice": Parameter("head", ("head", "layer"), "whether heads or layers choose salient tokens"),
        "recent": common.recent(),
        "sinks": common.sinks(),
    },
)
