"""KV in, bytes out, and back: no model, no files, no network.

``encode(kv, "kivi", bits=4)`` gives a ``Blob``; ``decode(blob)`` gives the KV back, within its error.
"""

from kvtool.codecs.calibration import Calibration, Sample
from kvtool.codecs.errors import CodecError, MissingCalibration, NeedsCalibration, NeedsError
from kvtool.codecs.format.blob import Blob, decode, encode
from kvtool.codecs.format.segment_spec import Contents
from kvtool.codecs.geometry import Geometry, LayerGeometry
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.pipeline import Inputs, Pipeline
from kvtool.codecs.plan import Plan
from kvtool.codecs.recipe import Parameter, Recipe
from kvtool.codecs.recipe_registry import recipe, recipes
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Array, Json, Payload, Place, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.stage_registry import register, stage_from_config, stages

__all__ = [
    "KV",
    "Array",
    "Blob",
    "Calibration",
    "CodecError",
    "Contents",
    "Geometry",
    "Inputs",
    "Json",
    "LayerGeometry",
    "LayerKV",
    "MissingCalibration",
    "NeedsCalibration",
    "NeedsError",
    "Parameter",
    "Payload",
    "Pipeline",
    "Place",
    "Plan",
    "Recipe",
    "Rope",
    "Sample",
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
