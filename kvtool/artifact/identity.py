"""Identity: what a segment's artifact is before it is made, and what skipping goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvtool.codecs import Pipeline
from kvtool.digest import digest_json, digest_token_ids

if TYPE_CHECKING:
    from kvtool.model.chat_template import Prefix
    from kvtool.model.model import Model

RAW = Pipeline((), ())
"""The pipeline of raw artifacts: no stages."""


def segment_identity(
    model: str,
    prefix: str,
    token_ids: Sequence[int],
    pipeline: Pipeline = RAW,
    made: Mapping[str, Any] | None = None,
) -> str:
    """A segment's identity, from model fingerprint, prefix digest, tokens and pipeline.

    ``made`` says how, where it is not what a prefill of these tokens after the prefix gives.
    """
    return _digest(model, prefix, digest_token_ids(token_ids), pipeline, made)


def compressed_identity(meta: Mapping[str, Any], pipeline: Pipeline) -> str:
    """The identity of what ``pipeline`` makes of the raw artifact whose header is ``meta``, before it is made."""
    model, prefix = meta["model"]["fingerprint"], meta["prefix"]["digest"]
    return _digest(model, prefix, meta["token_digest"], pipeline, meta.get("made"))


def made_identity(meta: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The identity of what is ``made`` otherwise of the segment whose raw artifact has the header ``meta``."""
    model, prefix = meta["model"]["fingerprint"], meta["prefix"]["digest"]
    return _digest(model, prefix, meta["token_digest"], RAW, made)


def _digest(model: str, prefix: str, tokens: str, pipeline: Pipeline, made: Mapping[str, Any] | None) -> str:
    return digest_json(
        {
            "model": model,
            "prefix": prefix,
            "tokens": tokens,
            "pipeline": pipeline.to_config(),
            "calibrations": calibration_digests(pipeline),
            **made_entry(made),
        }
    )


def made_entry(made: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"made": dict(made)} if made else {}


def calibration_digests(pipeline: Pipeline) -> list[str]:
    return [calibration.digest for calibration in pipeline.calibrations]


def prefix_identity(model: Model, prefix: Prefix) -> str:
    return segment_identity(model.fingerprint, digest_token_ids(()), prefix.token_ids)
