"""What a project's store should hold: the table ``build`` of ``kvtool.toml``, or ``tool.kvtool.build`` of ``pyproject.toml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvtool.compression.inputs import chosen_recipe, variant_name
from kvtool.config import BUILD, Settings, near_name, read_toml
from kvtool.errors import UsageError
from kvtool.store.layout import scheme
from kvtool.store.manifest import RAW

FILES = {"kvtool.toml": (BUILD,), "pyproject.toml": ("tool", "kvtool", BUILD)}
"""Where the table is looked for, in this order."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Table):
    """What ``kvtool eval`` must measure of a variant; None for no limit."""

    max_kl: float | None = Field(default=None, description="KL to the raw cache, in nats per token.")
    max_dnll: float | None = Field(default=None, description="Loss of likelihood, in nats per token.")
    min_top1: float | None = Field(default=None, description="Share of next tokens that stay the same.")
    min_retrieval: float | None = Field(
        default=None, description="Share of the raw cache's right answers that is kept."
    )
    min_answers: float | None = Field(
        default=None, description="F1 to the raw cache's answers to your `questions`."
    )
    min_ratio: float | None = Field(default=None, description="Ratio to 16 bits.")

    @property
    def given(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)


class BlendLimits(_Table):
    """What must be measured of a blend, against a full prefill of the same documents; None for no limit."""

    max_kl: float | None = Field(
        default=None, description="KL to a full prefill, in nats per token of its answer."
    )
    max_dnll: float | None = Field(
        default=None, description="Loss of likelihood of a full prefill's answer, in nats per token."
    )
    min_top1: float | None = Field(
        default=None, description="Share of the answer's tokens that stay the likeliest."
    )
    min_answers: float | None = Field(
        default=None, description="F1 to a full prefill's answers to your `questions`."
    )

    @property
    def given(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)


class Measure(_Table):
    """How much ``kvtool eval`` measures of what has limits; None for its default."""

    questions: Path | None = Field(default=None, description="Ask the questions in this file of JSON lines.")
    documents: int | None = Field(default=None, description="Measure on at most this many segments.")
    context: int | None = Field(default=None, description="Cache at most this many tokens of each.")
    tokens: int | None = Field(default=None, description="Predict this many tokens after the cached ones.")
    lengths: tuple[int, ...] | None = Field(
        default=None, description="Build haystacks of these lengths in tokens."
    )
    haystacks: int | None = Field(
        default=None, description="Build this many haystacks of each kind and length."
    )
    answer_tokens: int | None = Field(default=None, description="Compare this many tokens of each answer.")
    seed: int | None = Field(default=None, description="Draw segments and needles by this seed.")

    @property
    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"questions"})


class VariantSpec(_Table):
    """A variant, in the words of the options of ``kvtool compress``."""

    recipe: str | None = Field(default=None, description="Compress with this recipe; by default `klt`.")
    name: str | None = Field(default=None, description="Call the variant so; by default as the recipe.")
    bits: float | int | None = Field(default=None, description="Spend this many bits per value.")
    ratio: float | int | None = Field(default=None, description="Reach at least this ratio to 16 bits.")
    max_kl: float | None = Field(
        default=None, description="Find the setting that keeps the KL at or below this."
    )
    preset: str | None = Field(default=None, description="Use the setting that keeps this preset's promise.")
    keys: str | None = Field(default=None, description="Compress keys differently.")
    values: str | None = Field(default=None, description="Compress values differently.")
    keep: float | None = Field(default=None, description="Keep this share of the tokens.")
    resident: str | float | None = Field(
        default=None, description="Leave out tokens until caches take this share of memory."
    )
    recent: int | None = Field(default=None, description="Keep the last tokens in 16 bits, as many as this.")
    sinks: int | None = Field(default=None, description="Keep the first tokens in 16 bits, as many as this.")
    source: str | None = Field(default=None, description="Compress this variant: `raw` or `averaged`.")
    calibration: str | None = Field(default=None, description="Use this calibration of the store.")
    parameters: dict[str, int | float | str] = Field(
        default={}, alias="set", description="Any parameters of the recipe, by name."
    )
    gate: Limits = Field(default=Limits(), description="Fail where these limits are not kept.")

    @property
    def given(self) -> dict[str, Any]:
        """Arguments of ``kvtool.compress``."""
        own = self.model_dump(exclude_none=True, exclude={"gate", "parameters"})
        return {**own, **self.parameters}


class BlendSpec(_Table):
    """A blend of documents that has limits, in the words of the options of ``kvtool ask``."""

    variant: str = Field(default=RAW, description="Blend documents in this variant; by default `raw`.")
    policy: str | None = Field(default=None, description="Choose the recomputed tokens by this policy.")
    recompute: float | None = Field(default=None, description="Recompute this share of the tokens, 0 to 1.")
    gate: BlendLimits = Field(description="Fail where these limits are not kept.")

    @property
    def given(self) -> dict[str, Any]:
        """Arguments of ``BlendOptions``."""
        return self.model_dump(exclude_none=True, include={"policy", "recompute"})

    @property
    def name(self) -> str:
        """What the blend is called: what was given, so that it needs no name of its own."""
        named = [f"policy {self.policy}"] if self.policy is not None else []
        named += [f"recompute {self.recompute:g}"] if self.recompute is not None else []
        return ", ".join([f"blend of {self.variant}", *named])


class Project(_Table):
    """A store's documents, and the variants that each of them has beside its raw cache, in this order."""

    documents: tuple[str, ...] = Field(
        min_length=1, description="Files, folders and patterns, as for `kvtool prefill`."
    )
    variants: tuple[VariantSpec, ...] = Field(
        default=(), description="What each document has beside its raw cache."
    )
    blends: tuple[BlendSpec, ...] = Field(
        default=(), description="Blends of several documents that have a gate."
    )
    measure: Measure = Field(default=Measure(), description="How much is measured for gates.")
    report: Path | None = Field(default=None, description="Write what gates measured to this page.")
    push: str | None = Field(
        default=None,
        description="Copy what was built to this bucket, server or directory, once all gates are passed. Documents of the "
        "same names there are replaced.",
    )

    @property
    def by_name(self) -> dict[str, VariantSpec]:
        """Variants by what they are called. Raises ``UsageError`` for two of one name."""
        named: dict[str, VariantSpec] = {}
        for wanted in self.variants:
            prunes = wanted.keep is not None or wanted.resident is not None
            recipe = chosen_recipe(wanted.recipe, prunes=prunes)
            name = variant_name(recipe, wanted.name, wanted.source or "raw")
            if wanted.gate.given and wanted.source not in (None, RAW):
                reason = (
                    "cannot be measured: caches made for blending are not read for a document without others"
                )
                raise UsageError(f"gate of variant {name}", reason, "leave it out")
            for key in wanted.parameters:
                if key in type(wanted).model_fields:
                    raise UsageError(
                        f"variant {name}: set.{key}", "is a key of its own", f"write {key} = … without set"
                    )
            if name in named:
                raise UsageError(f"variant {name}", "is there twice", 'give one another name = "…"')
            named[name] = wanted
        return named

    @property
    def blends_by_name(self) -> dict[str, BlendSpec]:
        """Blends by what they are called. Raises ``UsageError`` for two of one name, and for a variant that is none."""
        named: dict[str, BlendSpec] = {}
        variants = [RAW, *self.by_name]
        for wanted in self.blends:
            if wanted.variant not in variants:
                remedy = near_name(wanted.variant, variants)
                raise UsageError(wanted.name, f"{wanted.variant} is no variant of this file", remedy)
            if not wanted.gate.given:
                limits = ", ".join(BlendLimits.model_fields)
                raise UsageError(f"gate of {wanted.name}", "has no limit", f"give one of {limits}")
            if wanted.name in named:
                raise UsageError(wanted.name, "is there twice", "join their limits in one gate")
            named[wanted.name] = wanted
        return named

    @property
    def gates(self) -> dict[str, dict[str, float]]:
        """Limits, by the names of the variants and blends that have some."""
        both: dict[str, VariantSpec | BlendSpec] = {**self.by_name, **self.blends_by_name}
        return {name: one.gate.given for name, one in both.items() if one.gate.given}


def read_project(settings: Settings) -> Project:
    """The project of the working directory.

    Raises ``UsageError`` where there is none, for an unknown key, with the one that was meant, and for a value of the wrong kind;
    for a store that cannot be written to.
    """
    if scheme(settings.store):
        raise UsageError(
            f"store {settings.store}", "is read only", "name a directory; kvtool build writes to it"
        )
    for name, keys in FILES.items():
        path = Path(name)
        table: Any = read_toml(path) if path.is_file() else {}
        for key in keys:
            table = table.get(key, {}) if isinstance(table, dict) else {}
        if table:
            return _project(table, path, ".".join(keys))
    where = " or ".join(f"[{'.'.join(keys)}] in {name}" for name, keys in FILES.items())
    raise UsageError(None, f"here is nothing to build: expected {where}", "kvtool init writes a first file")


def _project(table: Any, path: Path, prefix: str) -> Project:
    try:
        project = Project.model_validate(table)
    except ValidationError as error:
        # A key that is misspelt is missing under its right name too.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        place = [prefix, *map(str, first["loc"])]
        if first["type"] == "extra_forbidden":
            advice = ""
            if first["loc"][0] == "blends" and place[-1] in Limits.model_fields:
                advice = "it is a limit of variants, and not measured of blends; "
            remedy = near_name(place[-1], _keys(first["loc"][:-1]), advice)
            raise UsageError(path, f"unknown key {'.'.join(place)}", remedy) from error
        raise UsageError(path, f"{'.'.join(place)}: {first['msg'].lower()}") from error
    _ = project.gates
    return project


def _keys(place: Sequence[str | int]) -> list[str]:
    """The keys that a table may have, by where it is in the project's."""
    table: type[BaseModel] = Project
    tables: dict[str, type[BaseModel]] = {"variants": VariantSpec, "blends": BlendSpec, "measure": Measure}
    tables["gate"] = BlendLimits if "blends" in place else Limits
    for part in place:
        table = tables.get(str(part), table)
    return [field.alias or name for name, field in table.model_fields.items()]
