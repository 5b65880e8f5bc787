"""KV in, bytes out, and back: no model, no files, no network.

``encode(kv, "kivi", bits=4)`` gives a ``Blob``; ``decode(blob)`` gives the KV back, within its error.
"""

from kvtool.codecs.blob import Blob, decode, encode
from kvtool.codecs.contents import Contents
from kvtool.codecs.errors import CodecError
from kvtool.codecs.geometry import Geometry
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.plan import Plan
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.registry import recipe, recipes, register, stage_from_config, stages
from kvtool.codecs.stage import Array, Json, Payload, Spec, Stage

__all__ = [
    "KV",
    "Array",
    "Blob",
    "CodecError",
    "Contents",
    "Geometry",
    "Json",
    "LayerKV",
    "Parameter",
    "Payload",
    "Pipeline",
    "Plan",
    "Recipe",
    "Spec",
    "Stage",
    "decode",
    "encode",
    "recipe",
    "recipes",
    "register",
    "stage_from_config",
    "stages",
]
