"""Which requests are loaded: what they say of themselves, and what the engine was told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.lora.request import LoRARequest
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from kvtool.blending.blend import blend
from kvtool.connectors.blend_salt import blend_salt
from kvtool.connectors.reading import LayerSpan
from kvtool.connectors.vllm import worker
from kvtool.connectors.vllm.engine import engine_model
from kvtool.connectors.vllm.layers import Layer
from kvtool.connectors.vllm.orders import Faults
from kvtool.connectors.vllm.scheduler import plain_tokens
from kvtool.connectors.vllm.unsuited import refuse_unsuited
from kvtool.errors import ModelError, UsageError
from kvtool.store.local import LocalStore
from tests.connectors.vllm.conftest import Case
from tests.connectors.vllm.harness import Harness, PlainLayer

HARBOUR, BAKERY = "harbour.md", "bakery.md"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(worker, "get_tensor_model_parallel_world_size", lambda: 1)


@pytest.fixture
def qwen3(case: Callable[[str], Case]) -> Case:
    return case("qwen3")


@pytest.fixture(scope="module")
def blended(case: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A store with a blend of two documents, called both."""
    made = case("qwen3")
    folder = tmp_path_factory.mktemp("blended") / "store"
    store = LocalStore(Path(shutil.copytree(made.store.root, folder)))
    blend(store, [HARBOUR, BAKERY], made.model, recompute=0).save(store, "both", made.model)
    return replace(made, store=store)


def test_a_blend_is_loaded_by_its_name_and_salt_alone(
    blended: Case, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(blended)
    ids, identity = blended.tokens("both"), blended.store["both"].segments[0].identity
    prompt = [*ids, 1, 2, 3]
    harbour = len(blended.tokens(HARBOUR))
    named = {"kvtool": {"blend": "both"}}
    harness.add("plain", prompt)
    harness.run()
    harness.add("another salt", prompt, params=named, cache_salt="tenant")
    harness.run()
    assert "cache_salt is not" in caplog.text
    harness.add("no salt", prompt, params=named)
    harness.run()
    harness.add("named", prompt, params=named, cache_salt=blend_salt(identity))
    harness.run()
    harness.add("other prompt", [5, *prompt], params=named, cache_salt=blend_salt(identity))
    harness.run()
    assert harness.computed["plain"] == len(prompt) - harbour + 3
    assert harness.computed["another salt"] == len(prompt) + 3
    assert harness.computed["named"] == 6
    assert harness.computed["other prompt"] == len(prompt) + 4


@pytest.mark.parametrize(
    "params",
    ["both", ["both"], {"kvtool": "both"}, {"kvtool": ["both"]}, {"kvtool": {"blend": 5}}, {"other": 1}],
)
def test_params_of_any_shape_do_no_harm(qwen3: Case, params: Any) -> None:
    harness = Harness(qwen3)
    request = harness.add("one", [*qwen3.tokens(HARBOUR), 1, 2, 3])
    request.kv_transfer_params = params
    harness.run()
    assert harness.computed["one"] == 6


def test_logprobs_of_the_prompt_are_computed(qwen3: Case) -> None:
    harness = Harness(qwen3)
    prompt = [*qwen3.tokens(HARBOUR), 1, 2, 3]
    harness.add("one", prompt, sampling={"prompt_logprobs": 1})
    harness.run()
    assert harness.computed["one"] == len(prompt) + 3


def test_a_request_with_an_adapter_gets_no_cache_without(qwen3: Case, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    harness = Harness(qwen3)
    prompt = [*qwen3.tokens(HARBOUR), 1, 2, 3]
    harness.add("one", prompt, lora_request=LoRARequest("a", 1, str(tmp_path)))
    harness.run()
    assert harness.computed["one"] == len(prompt) + 3


def test_reset_caches_end_it(qwen3: Case) -> None:
    harness = Harness(qwen3)
    assert harness.scheduler.reset_prefix_cache(reset_connector=True)
    prompt = [*qwen3.tokens(HARBOUR), 1, 2, 3]
    harness.add("one", prompt)
    harness.run()
    assert harness.computed["one"] == len(prompt) + 3


def test_tokens_after_pictures_and_embeddings_are_not_looked_up() -> None:
    request = SimpleNamespace(
        prompt_token_ids=list(range(100)), prompt_embeds=None, prompt_is_token_ids=None, mm_features=[]
    )
    assert plain_tokens(request) == list(range(100))
    request.mm_features = [SimpleNamespace(mm_position=SimpleNamespace(offset=n)) for n in (70, 40)]
    assert plain_tokens(request) == list(range(40))
    request.prompt_is_token_ids = [True] * 20 + [False] * 80
    assert plain_tokens(request) == list(range(20))
    request.prompt_embeds = torch.zeros(1)
    assert plain_tokens(request) == []


@pytest.mark.parametrize("block_size", [8, 16, 48])
@pytest.mark.parametrize("kernel_size", [8, 16])
def test_blocks_of_any_size(block_size: int, kernel_size: int) -> None:
    if block_size % kernel_size:
        pytest.skip("a kernel's blocks divide the manager's")
    module = PlainLayer(2, 4)
    blocks = torch.full((12 * block_size // kernel_size, 2, kernel_size, 8), torch.nan)
    layer = Layer("layer", module, blocks, 0, block_size)
    keys, values = torch.randn(2, 2, 70, 4)
    ids = [7, 3, 11, 1, 5, 2, 9, 4, 8, 10]
    layer.write(LayerSpan(0, 5, keys, values), ids, 0, 1)
    flat = blocks.transpose(1, 2).flatten(0, 1)
    for token in range(70):
        position = token + 5
        slot = ids[position // block_size] * block_size + position % block_size
        assert torch.equal(flat[slot], torch.cat([keys[:, token], values[:, token]], -1))
    assert flat.isnan().all(-1).all(-1).sum() == len(flat) - 70


def test_one_failing_rank_fails_the_load() -> None:
    good = KVConnectorOutput(finished_recving={"one", "two"})
    bad = KVConnectorOutput(
        finished_recving={"one", "two"}, failed_recving={"one"}, kv_connector_worker_meta=Faults({"one"})
    )
    outputs = [ModelRunnerOutput([], {}, kv_connector_output=output) for output in (good, bad)]
    aggregated = KVOutputAggregator(2).aggregate(outputs).kv_connector_output
    assert aggregated.failed_recving == {"one"}
    assert aggregated.finished_recving == {"one", "two"}
    assert aggregated.kv_connector_worker_meta == Faults({"one"})


REFUSED = {
    "kv_load_failure_policy": {"kv_transfer_config": {"kv_load_failure_policy": "fail"}},
    "kv_role": {"kv_transfer_config": {"kv_role": "kv_producer"}},
    "decode_context_parallel_size": {"parallel_config": {"decode_context_parallel_size": 2}},
    "speculative_config": {"speculative_config": SimpleNamespace(method="eagle3")},
}


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of parts of a ``VllmConfig``, some fields of which differ."""
    names = ("kv_transfer_config", "parallel_config", "model_config", "load_config", "speculative_config")
    parts = {name: getattr(config, name) for name in names}
    for name, change in changes.items():
        if isinstance(change, dict):
            parts[name] = SimpleNamespace(**{**vars(parts[name]), **change})
        else:
            parts[name] = change
    return SimpleNamespace(**parts)


@pytest.mark.parametrize("field", REFUSED)
def test_settings_under_which_a_cache_could_do_harm(qwen3: Case, field: str) -> None:
    config = Harness(qwen3).config
    refuse_unsuited(changed(config, {"speculative_config": SimpleNamespace(method="ngram")}))
    with pytest.raises(UsageError, match=field):
        refuse_unsuited(changed(config, REFUSED[field]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"load_config": {"load_format": "dummy"}}, "load_format dummy"),
        ({"load_config": {"load_format": "sharded_state"}}, "load_format sharded_state"),
        ({"model_config": {"hf_overrides": {"rope_theta": 5}}}, "hf_overrides"),
        ({"model_config": {"hf_config_path": "elsewhere"}}, "hf_config_path"),
    ],
)
def test_a_model_that_is_not_the_one_in_its_directory(
    qwen3: Case, changes: dict[str, Any], named: str
) -> None:
    config = Harness(qwen3).config
    assert engine_model(changed(config, {"model_config": {"use_mla": False}})).model.dtype_name == "float32"
    with pytest.raises(ModelError, match=named):
        engine_model(changed(config, changes))


def test_the_class_is_imported_without_numba() -> None:
    code = "import sys; from kvtool.connectors.vllm import KvtoolConnector; print('llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
