"""Blending: cached documents one behind the other in one prompt, a few of their tokens recomputed."""

from ..engines.parallel import reading
from .blending import RECOMPUTE, How, blend
from .layout import Cached, Part, Text
from .policies import DEFAULT, POLICIES

__all__ = ["DEFAULT", "POLICIES", "RECOMPUTE", "Cached", "How", "Part", "Text", "blend", "reading"]
