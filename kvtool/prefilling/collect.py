"""What stages of recipes need beside keys and values, measured ahead of time and kept beside the raw artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvtool.artifact.collected import collected_content
from kvtool.artifact.measure import measure_artifact
from kvtool.codecs import CodecError, Inputs
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.engines.stage_inputs import MEASURED
from kvtool.errors import KvtoolError, StoreError, UsageError
from kvtool.model.model import Model
from kvtool.store.local import LocalStore
from kvtool.store.manifest import INPUTS, RAW, Variant
from kvtool.store.segments import SegmentRef, holds_inputs, stored_inputs


def needs_of(recipes: Iterable[str]) -> frozenset[str]:
    """What the stages of ``recipes`` need that can be measured; of combinations as in ``kvzip+klt``, the part that prunes.

    Raises ``UsageError`` for an unknown recipe, and for one that needs nothing.
    """
    needs: frozenset[str] = frozenset()
    for name in recipes:
        try:
            of_recipe = find_recipe(name.partition("+")[0]).build().needs & MEASURED
        except CodecError as error:
            raise UsageError(f"--collect {name}", error) from error
        if not of_recipe:
            reason = "needs nothing beside keys and values"
            raise UsageError(f"--collect {name}", reason, "leave it out: compress runs no model for it")
        needs |= of_recipe
    return needs


def collect_inputs(
    store: LocalStore,
    model: Model,
    names: Iterable[str],
    needs: frozenset[str],
    on_segment: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Measures ``needs`` of the documents ``names`` and stores them; gives those of which some were missing.

    The inputs of one segment are in memory at a time. ``on_segment`` gets each one's number of tokens.
    """
    collected: list[str] = []
    for name in names:
        for index, segment in enumerate(store[name].segments):
            ref = SegmentRef(name, index)
            if not holds_inputs(store, ref, needs):
                held = _held(store, ref)
                missing = measure_artifact(model, store.parts(name, RAW, index), needs - held.keys())
                content = collected_content(store.open(name, RAW, index), {**held, **missing})
                _commit(store, ref, segment.identity, store.put(content), sorted({*held, *missing}))
                collected.append(name)
            on_segment(segment.n_tokens)
    return list(dict.fromkeys(collected))


def _held(store: LocalStore, ref: SegmentRef) -> Inputs:
    """All inputs that the store holds already, of a file that is whole."""
    try:
        return stored_inputs(store, ref, MEASURED)
    except KvtoolError:
        return {}


def _commit(store: LocalStore, ref: SegmentRef, identity: str, made: Variant, names: list[str]) -> None:
    with store.changing():
        document = store[ref.document]
        if document.segments[ref.segment].identity != identity:
            raise StoreError(ref.document, "was prefilled again meanwhile", "run the same prefill again")
        variant = Variant(made.artifact, made.nbytes, {"inputs": names})
        store.commit(document.with_variant(ref.segment, INPUTS, variant))
