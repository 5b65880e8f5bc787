"""Probability models for entropy coding: from a few side bytes to the tables that a coder works with.

A model knows nothing of the coder, and the coder nothing of models. A model must give the same tables on every
machine, to the last unit, or a decoder reads garbage. So models compute in integers, and use float64 only for what
IEEE 754 rounds correctly: products, quotients, square roots. Exponentials come from ``decimal``.
"""

from kvtool.codecs.entropy_models.corrected import Corrected
from kvtool.codecs.entropy_models.model import Model, Tables, precision
from kvtool.codecs.entropy_models.parametric import Parametric
from kvtool.codecs.entropy_models.shared import Shared

MODELS: tuple[Model, ...] = (Shared(), Parametric(), Corrected())
"""In the order of the numbers by which a stream names them, from 1 on. Only ever added to."""

__all__ = ["MODELS", "Corrected", "Model", "Parametric", "Shared", "Tables", "precision"]
