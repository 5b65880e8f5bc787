"""What a shell offers for options that name recipes, variants, presets and policies, and for documents.

Who presses a key waits for it, so nothing here imports torch or asks a server. The names of kvtool's own recipes, presets and
policies stand here for that reason, and a test compares them with what there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kvtool.store.catalog.catalog import Catalog

RECIPES = (
    "a2sf ada-kv attention-matching bfp cachegen cachegen-lmcache cake corm d2o duoattention elastic-cache "
    "expected-attention gear h2o int8-blockwise keydiff keyformer kivi klt kvcrush kvmerger kvquant kvsculpt kvtc kvzip "
    "l2-norm lossless mikv minicache nf4 prefixkv pyramidkv quest razorattention rotatekv scissorhands sirllm snapkv "
    "squeezeattention streaming-llm think turboquant vatp xkv zipcache"
)
CALIBRATED = "klt kvquant kvtc"
PRESETS = "near-lossless balanced small"
POLICIES = "none all even legolink cacheblend cacheblend-keys cacheblend-gradual prophet fusionrag infoflow ape drift"


def complete_documents(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the store's documents; none where there is no store to look at."""
    catalog = _catalog(context)
    return [] if catalog is None else _beginning(catalog, incomplete)


def complete_variants(context: typer.Context, incomplete: str) -> list[str]:
    """Variants that the store's documents have."""
    return _beginning(_variants(context), incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes; after a plus, those that code what the first one leaves."""
    first, plus, last = incomplete.rpartition("+")
    return [f"{first}{plus}{name}" for name in _beginning(RECIPES.split(), last)]


def complete_calibrated(incomplete: str) -> list[str]:
    return _beginning(CALIBRATED.split(), incomplete)


def complete_recipes(context: typer.Context, incomplete: str) -> list[str]:
    """A list with commas: its last part is completed, by recipes and by variants."""
    first, comma, last = incomplete.rpartition(",")
    known = dict.fromkeys([*RECIPES.split(), *_variants(context)])
    return [f"{first}{comma}{name}" for name in _beginning(known, last)]


def complete_presets(incomplete: str) -> list[str]:
    return _beginning(PRESETS.split(), incomplete)


def complete_policies(incomplete: str) -> list[str]:
    return _beginning(POLICIES.split(), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _variants(context: typer.Context) -> Sequence[str]:
    from kvtool.errors import KvtoolError

    found: dict[str, None] = {}
    catalog = _catalog(context)
    for name in catalog or ():
        try:
            found |= dict.fromkeys(catalog[name].variants if catalog is not None else ())
        except KvtoolError:
            # A broken manifest names none.
            continue
    return list(found)


def _catalog(context: typer.Context) -> Catalog | None:
    """The store that the command line names, where it is on this machine."""
    from kvtool.config import settings
    from kvtool.errors import KvtoolError
    from kvtool.store.catalog.open import open_catalog
    from kvtool.store.layout import scheme

    try:
        store = settings(store=context.params.get("store")).store
        # Nobody who presses a key expects a request to a server.
        return None if scheme(store) else open_catalog(store)
    except KvtoolError:
        return None
