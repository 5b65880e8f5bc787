"""All that transformers and peft may do to a model at load, by their own lists, and what becomes of each with kvtool.

IDENTITY: the fingerprint covers it. REFUSED: a ``ModelError``. UNDONE: kvtool puts its own setting in its place.
WARNED: said in the log. NOTHING: it changes neither weights nor tokens nor how they are run. A name that a new version of
the libraries adds fails here until someone decides.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
import transformers.utils as names
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.loading_report import LoadStateDictInfo

import kvtool
from kvtool.errors import ModelError
from kvtool.model import fingerprint
from kvtool.model.run_settings import use_our_settings
from tests.model.test_checkpoint import adapter, copied, edit

__all__ = ["adapter"]

IDENTITY, REFUSED, UNDONE, WARNED, NOTHING = "identity", "refused", "undone", "warned", "nothing"

FILES = {
    "config.json": IDENTITY,
    "model.safetensors": IDENTITY,
    # Read only where there is no single file, and then its shards are hashed.
    "model.safetensors.index.json": NOTHING,
    "chat_template.jinja": IDENTITY,
    "chat_template.json": NOTHING,
    "generation_config.json": UNDONE,
    "adapter_config.json": REFUSED,
    # Without adapter_config.json nobody looks for them.
    "adapter_model.safetensors": NOTHING,
    "adapter_model.bin": NOTHING,
    "pytorch_model.bin": NOTHING,
    "pytorch_model.bin.index.json": NOTHING,
    "processor_config.json": NOTHING,
    "preprocessor_config.json": NOTHING,
    "video_preprocessor_config.json": NOTHING,
    "audio_tokenizer_config.json": NOTHING,
    "modelcard.json": NOTHING,
}
CONFIG = {
    "architectures": IDENTITY,
    "chunk_size_feed_forward": IDENTITY,
    "dtype": IDENTITY,
    "id2label": IDENTITY,
    "label2id": IDENTITY,
    "problem_type": IDENTITY,
    "is_encoder_decoder": REFUSED,
    "output_hidden_states": UNDONE,
    "return_dict": UNDONE,
    "transformers_version": NOTHING,
}
LEFT_OUT = {
    "dtype": IDENTITY,
    "torch_dtype": IDENTITY,
    "use_cache": UNDONE,
    "transformers_version": NOTHING,
    "name_or_path": NOTHING,
    "is_local": NOTHING,
    "local_files_only": NOTHING,
}
"""What the digest of config.json leaves out; the number type has a field of its own in the identity."""
REPORT = {
    "missing_keys": REFUSED,
    "mismatched_keys": REFUSED,
    "error_msgs": REFUSED,
    "conversion_errors": REFUSED,
    "unexpected_keys": WARNED,
    # Of several processes with a part of the model each; kvtool has one.
    "skipped_pp_keys": NOTHING,
}
GENERATION_KEPT = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
# Their "adapter" is virtual tokens before the prompt, or a gate in it: more than weights.
PROMPT_LEARNING = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
    "ADAPTION_PROMPT",
}
WEIGHTS = {
    *("LORA", "ADALORA", "ADAMSS", "BOFT", "IA3", "BEFT", "LILY", "LOHA", "LOKR", "OFT", "POLY", "LN_TUNING"),
    *("VERA", "FROD", "PVERA", "FOURIERFT", "GLORA", "HRA", "VBLORA", "UNILORA", "MISS", "RANDLORA"),
    *("ROAD", "TRAINABLE_TOKENS", "HIRA", "SHIRA", "C3A", "WAVEFT", "OSF", "DELORA", "GRALORA", "TINYLORA"),
    *("PSOFT", "PEANUT", "SUPERTUNING", "DEFT"),
}
OF_MORE_FILES = {"XLORA", "SHADOW"}
PEFT = dict.fromkeys(WEIGHTS, IDENTITY) | dict.fromkeys(PROMPT_LEARNING | OF_MORE_FILES, REFUSED)


def test_every_file_that_transformers_knows_is_decided() -> None:
    constants = {getattr(names, name) for name in dir(names) if name.endswith(("_NAME", "_FILE"))}
    assert {name for name in constants if isinstance(name, str) and "." in name} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tiny: kvtool.Model, tmp_path: Path) -> None:
    directory = copied(tiny.directory, tmp_path / "model")
    verdict, file = FILES[name], directory / name
    if name == "model.safetensors":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif name == "config.json":
        edit(file, rms_norm_eps=0.1)
    elif name == "chat_template.jinja":
        file.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    elif name == "generation_config.json":
        edit(file, repetition_penalty=3.0)
    else:
        file.write_text('{"base_model_name_or_path": "somebody/else", "weight_map": {}}')
    if verdict == REFUSED:
        with pytest.raises(ModelError, match=name):
            kvtool.load_model(directory)
        return
    model = kvtool.load_model(directory)
    assert (model.fingerprint != tiny.fingerprint) == (verdict == IDENTITY)
    if verdict != IDENTITY:
        assert behaviour(model) == behaviour(tiny)


def behaviour(model: kvtool.Model) -> tuple[list[float], list[int]]:
    with torch.no_grad():
        logits = model.model(torch.tensor([[256, 40, 50]])).logits[0, -1].tolist()
    generated = model.model.generate(torch.tensor([[256, 40, 50]]), max_new_tokens=8)
    return logits, generated[0].tolist()


def test_every_field_of_all_configs_is_decided() -> None:
    assert {field.name for field in dataclasses.fields(t.PreTrainedConfig)} == set(CONFIG)
    assert set(LEFT_OUT) == fingerprint._VOLATILE


@pytest.mark.parametrize("name", sorted(CONFIG | LEFT_OUT))
def test_fields_of_the_config(name: str, tiny: kvtool.Model, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "chunk_size_feed_forward": 2,
        "id2label": {"0": "a"},
        "label2id": {"a": 0},
        "problem_type": "regression",
        "is_encoder_decoder": True,
        "output_hidden_states": True,
        "transformers_version": "4.30.0",
        "name_or_path": "somebody/else",
    }
    verdict = (CONFIG | LEFT_OUT)[name]
    directory = copied(tiny.directory, tmp_path / "model")
    if name in ("dtype", "torch_dtype"):
        assert kvtool.load_model(directory, dtype="bfloat16").fingerprint != tiny.fingerprint
        return
    edit(directory / "config.json", **{name: values.get(name, False)})
    model = kvtool.load_model(directory)
    if verdict == IDENTITY:
        assert model.fingerprint != tiny.fingerprint
    elif verdict == REFUSED:
        (tmp_path / "a.txt").write_text("words")
        with pytest.raises(ModelError, match="decoder"):
            kvtool.prefill([tmp_path / "a.txt"], model=model, store=kvtool.Store(tmp_path / "store"))
    else:
        assert behaviour(model) == behaviour(tiny)


def test_nothing_of_a_generation_config_stays_but_special_tokens() -> None:
    fields = set(t.GenerationConfig().to_dict())

    def settled(generation_config: t.GenerationConfig) -> dict[str, Any]:
        config = t.LlamaConfig()
        model = SimpleNamespace(config=config, generation_config=generation_config)
        use_our_settings(model)
        return model.generation_config.to_dict()

    changed = t.GenerationConfig()
    for name in fields:
        setattr(changed, name, 7)
    plain, other = settled(t.GenerationConfig()), settled(changed)
    assert {name for name in fields if plain.get(name) != other.get(name)} == GENERATION_KEPT - {
        "transformers_version"
    }


def test_everything_that_loading_reports_is_decided(tiny_dir: Path, tmp_path: Path) -> None:
    # What is refused or said of missing and unexpected tensors: test_weights.py.
    assert {field.name for field in dataclasses.fields(LoadStateDictInfo)} == set(REPORT)
    directory = copied(tiny_dir, tmp_path / "model")
    edit(directory / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        _ = kvtool.load_model(directory).model


def test_no_causal_family_has_files_of_its_own() -> None:
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config = t.CONFIG_MAPPING.get(model_type, None)
        assert not getattr(config, "extra_files", ()), f"{model_type}: its files are not hashed"


def test_every_kind_of_adapter_is_decided() -> None:
    peft = pytest.importorskip("peft")
    assert {kind.name for kind in peft.PeftType} == set(PEFT)
    configs = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    learned = {kind.name for kind, config in configs.items() if issubclass(config, peft.PromptLearningConfig)}
    # peft's injection refuses both by these two properties.
    assert learned | {"ADAPTION_PROMPT"} == PROMPT_LEARNING


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_prompt_learning_is_refused(kind: str, tiny_dir: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]]
    options = {"encoder_hidden_size": 8} if kind == "P_TUNING" else {}
    base = t.AutoModelForCausalLM.from_pretrained(tiny_dir)
    tuned = peft.get_peft_model(base, config(num_virtual_tokens=4, task_type="CAUSAL_LM", **options))
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="cannot be loaded"):
        _ = kvtool.load_model(tiny_dir, adapter=tmp_path / "adapter").model


@pytest.mark.parametrize(
    "field", ["lora_alpha", "use_rslora", "init_lora_weights", "layer_replication", "alpha_pattern"]
)
def test_an_adapters_config_is_in_the_identity(field: str, tiny_dir: Path, adapter: Path) -> None:
    before = kvtool.load_model(tiny_dir, adapter=adapter).fingerprint
    edit(adapter / "adapter_config.json", **{field: 5})
    assert kvtool.load_model(tiny_dir, adapter=adapter).fingerprint != before


@pytest.mark.parametrize("kind", sorted(OF_MORE_FILES))
def test_adapters_that_load_other_files_are_refused(kind: str, tiny_dir: Path, adapter: Path) -> None:
    edit(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(ModelError, match=rf"peft_type {kind} "):
        kvtool.load_model(tiny_dir, adapter=adapter)


def test_chance_and_nonsense_in_an_adapters_config_are_refused(tiny_dir: Path, adapter: Path) -> None:
    edit(adapter / "adapter_config.json", init_lora_weights="pissa_niter_4")
    with pytest.raises(ModelError, match=r"init_lora_weights pissa_niter_4 .*random"):
        _ = kvtool.load_model(tiny_dir, adapter=adapter).model
    edit(adapter / "adapter_config.json", init_lora_weights=True, peft_type="NO_SUCH_KIND")
    with pytest.raises(ModelError, match="cannot be loaded"):
        _ = kvtool.load_model(tiny_dir, adapter=adapter).model
