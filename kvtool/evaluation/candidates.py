"""Candidates: the raw cache, recipes, and whatever else restores a cache from fewer bytes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kvtool.calibration.lookup import FindCalibration
from kvtool.codecs import CodecError, Pipeline
from kvtool.codecs.recipe_registry import is_recipe
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.compression.pipeline_options import parameters_of, pipeline_of
from kvtool.digest import Json
from kvtool.engines.cache import DocumentCache
from kvtool.engines.stage_inputs import refuse_unmeasurable
from kvtool.errors import UsageError
from kvtool.measurement import journal
from kvtool.measurement.bench import Bench
from kvtool.store.base import Store
from kvtool.store.manifest import AVERAGED, INPUTS, RAW

Kind = Literal["raw", "recipe", "peer"]


@dataclass(frozen=True)
class Restored:
    """A context's cache as it was restored, and what that took.

    ``nbytes`` are all bytes stored. ``position`` is set where tokens are missing: the position of the next token.
    """

    cache: DocumentCache
    nbytes: int
    encode_seconds: float
    load_seconds: float
    position: int | None = None


class Candidate(Protocol):
    """Anything that stores and restores a cache.

    ``name`` is unique in an evaluation. Candidates of one ``family`` are points on one curve. ``identity`` is what the
    results depend on. ``variant`` is the variant that ``restore`` leaves on the bench, None where it leaves none.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def family(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def identity(self) -> Json: ...
    @property
    def variant(self) -> str | None: ...

    def restore(self, bench: Bench) -> Restored:
        """Stores the context that the bench holds, and loads it again."""
        ...


@dataclass(frozen=True)
class Raw:
    """The cache as prefill made it, to which all others are compared."""

    name: str = RAW
    kind: Kind = "raw"
    family: str = RAW
    summary: str = "as prefill made it"
    paper: str = ""
    identity: Json = RAW
    variant: str | None = RAW

    def restore(self, bench: Bench) -> Restored:
        started = time.monotonic()
        cache = bench.load()
        return Restored(cache, bench.raw_nbytes, 0.0, time.monotonic() - started)


@dataclass(frozen=True)
class Coded:
    """A pipeline, by way of files as ``compress`` writes them and ``load`` reads them."""

    name: str
    family: str
    pipeline: Pipeline
    summary: str = ""
    paper: str = ""
    kind: Kind = "recipe"

    @property
    def identity(self) -> Json:
        return journal.pipeline_identity(self.pipeline)

    @property
    def variant(self) -> str | None:
        return self.name

    def restore(self, bench: Bench) -> Restored:
        _, measuring = bench.measured(self.pipeline)
        started = time.monotonic()
        nbytes = bench.encode(self.pipeline, self.name)
        encoded = time.monotonic()
        cache = bench.load(self.name)
        return Restored(cache, nbytes, measuring + encoded - started, time.monotonic() - encoded)


def candidate(text: str, find: FindCalibration | None = None) -> Coded:
    """The candidate for ``recipe`` or ``recipe:parameter=value:…``. ``keys`` and ``values`` are parameters as in compress.

    ``find`` gives recipes the calibrations that they need. Raises ``UsageError`` for an unknown recipe, parameter or
    value, and for a missing calibration.
    """
    name, *options = text.split(":")
    if "=" in name:
        remedy = "parameters follow their recipe after colons, as in kivi:bits=4:recent=32"
        raise UsageError(f"--recipes {text}", "is no recipe", remedy)
    parameters = parameters_of(_joined(options), f"--recipes {text}", "kivi:bits=4")
    keys, values = (str(parameters.pop(side)) if side in parameters else None for side in ("keys", "values"))
    pipeline = pipeline_of(name, keys, values, find, **parameters)
    refuse_unmeasurable(name, pipeline)
    recipe = find_recipe(name)
    return Coded(text, name, pipeline, recipe.summary, recipe.paper)


def candidates(texts: Iterable[str], find: FindCalibration | None = None) -> list[Coded]:
    """The candidate for each of ``texts``, once. Raises ``UsageError`` as ``candidate`` does."""
    texts = [texts] if isinstance(texts, str) else texts
    return [candidate(text, find) for text in dict.fromkeys(text.strip() for text in texts) if text]


def chosen(
    texts: Iterable[str], store: Store, names: Sequence[str], find: FindCalibration | None = None
) -> list[Coded]:
    """``candidates``, where ``texts`` may name variants of ``names`` too, and the raw cache, which is compared anyway."""
    texts = [texts] if isinstance(texts, str) else texts
    variants: dict[str, Coded] | None = None
    coded: list[Coded] = []
    for text in dict.fromkeys(text.strip() for text in texts):
        if text in ("", RAW):
            continue
        if not is_recipe(text.split(":")[0]):
            variants = variants or {variant.name: variant for variant in variants_of(store, names)}
        coded.append((variants or {}).get(text) or candidate(text, find))
    return coded


def variants_of(store: Store, names: Sequence[str], only: Collection[str] | None = None) -> list[Coded]:
    """The pipelines of the variants that ``names`` have, all or ``only`` some.

    Raises ``UsageError`` for a variant made in different ways.
    """
    by_variant: dict[str, Coded] = {}
    remedy = "name what to compare with --recipes"
    for name in names:
        for variant, artifact in store[name].segments[0].variants.items():
            # Variants made for blending are not read for a document without others.
            if variant in (RAW, AVERAGED, INPUTS) or "of" in artifact.recipe:
                continue
            if only is not None and variant not in only:
                continue
            family = str(artifact.recipe.get("name", variant))
            try:
                pipeline = Pipeline.from_config(artifact.recipe["pipeline"], store.calibrations)
            except (CodecError, KeyError) as error:
                raise UsageError(
                    name, f"its variant {variant!r} cannot be made here ({error})", remedy
                ) from error
            recipe = find_recipe(family) if is_recipe(family) else None
            summary, paper = (recipe.summary, recipe.paper) if recipe else ("", "")
            coded = Coded(variant, family, pipeline, summary, paper)
            if by_variant.setdefault(variant, coded).pipeline != pipeline:
                reason = f"its variant {variant!r} was made otherwise than that of other documents"
                raise UsageError(name, reason, remedy)
    return list(by_variant.values())


def _joined(options: Iterable[str]) -> list[str]:
    """Joins what was split at a colon within a value, as in ``keys=kvquant:3``."""
    joined: list[str] = []
    for option in options:
        if "=" in option or not joined:
            joined.append(option)
        else:
            joined[-1] += f":{option}"
    return [option for option in joined if option]
