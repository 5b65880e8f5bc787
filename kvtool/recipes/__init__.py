"""Papers as data: kvtool's own recipes, one module for each paper or family.

They are found through the entry point group ``kvtool.recipes``. A module below this package with a ``RECIPE`` is one of
them.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from kvtool.codecs.recipe import Recipe

_MODULES = (import_module(module.name) for module in pkgutil.walk_packages(__path__, f"{__name__}."))

RECIPES: tuple[Recipe, ...] = tuple(module.RECIPE for module in _MODULES if hasattr(module, "RECIPE"))
