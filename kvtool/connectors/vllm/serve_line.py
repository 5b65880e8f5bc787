"""The line that starts vLLM over a store, and which of the store's documents it can load then."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.vllm.settings import Settings
from kvtool.errors import MismatchError
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import Document


@dataclass(frozen=True)
class ServeLine:
    """``vllm serve`` with the connector. ``model`` is what vLLM is told to serve, at ``revision`` if it is on the hub."""

    model: str
    revision: str | None
    dtype: str
    settings: Settings

    @classmethod
    def of(cls, model: Model, dtype: str, settings: Settings) -> ServeLine:
        repo, at, commit = model.name.partition("@")
        # Names of the hub alone have a commit.
        is_hub = bool(at) and model.directory.name == commit
        return cls(repo if is_hub else str(model.directory), commit if is_hub else None, dtype, settings)

    @property
    def transfer_config(self) -> dict[str, Any]:
        """The value of ``--kv-transfer-config``."""
        defaults = {field.name: field.default for field in fields(Settings)}
        extra = {name: value for name, value in asdict(self.settings).items() if value != defaults[name]}
        return {
            "kv_connector": "KvtoolConnector",
            "kv_connector_module_path": "kvtool.connectors.vllm",
            "kv_role": "kv_consumer",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": extra,
        }

    @property
    def words(self) -> list[str]:
        """The line's words, for a shell to be quoted."""
        revision = ["--revision", self.revision] if self.revision else []
        transfer = json.dumps(self.transfer_config)
        return [
            "vllm",
            "serve",
            self.model,
            *revision,
            "--dtype",
            self.dtype,
            "--kv-transfer-config",
            transfer,
        ]


@dataclass(frozen=True)
class Loadable:
    """The number of documents that can be loaded in each dtype, and of the others by what tells their model apart."""

    dtypes: Mapping[str, int]
    others: Mapping[str, int]

    def best(self, model: str, store: Store) -> str:
        """The dtype with the most documents. Raises ``MismatchError`` if there are none at all."""
        if not self.dtypes:
            reasons = "; ".join(f"{count} documents: {reason}" for reason, count in self.others.items())
            raise MismatchError(
                str(store),
                f"has no documents that {model} made" + (f" ({reasons})" if reasons else ""),
                "name their model with --model, or prefill",
            )
        return max(self.dtypes, key=lambda dtype: self.dtypes[dtype])


def loadable(store: Store, model: Model, variant: str | None = None) -> Loadable:
    """Counts the documents of ``store`` that have ``variant``, by the model that made them.

    The weights of ``model`` are hashed, and the hashes remembered: vLLM's start then need not.
    """
    dtypes: Counter[str] = Counter()
    others: Counter[str] = Counter()
    by_model: dict[tuple[str, str], list[Document]] = {}
    for document in store.readable():
        if variant in (None, *document.variants):
            key = document.model["fingerprint"], document.model["name"]
            by_model.setdefault(key, []).append(document)
        else:
            others[f"without variant {variant}"] += 1
    for (_, name), documents in by_model.items():
        made_by = headers_of(store).open_artifact(documents[0].artifacts[0]).meta["model"]
        own = EngineModel.at(model.directory, dtype=made_by["dtype"])
        if difference := own.difference(made_by, name):
            others[difference] += len(documents)
        else:
            dtypes[made_by["dtype"]] += len(documents)
    return Loadable(dict(dtypes), dict(others))
