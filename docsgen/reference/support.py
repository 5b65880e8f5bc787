"""What kvtool was tested with, from the files that say so."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page

ROOT = Path(__file__).parents[2]
SHOWN = (
    "torch",
    "transformers",
    "safetensors",
    "numba",
    "triton",
    "obstore",
    "starlette",
    "uvicorn",
    "peft",
    "bitsandbytes",
)

INTRO = """*At least* is what `pyproject.toml` asks for. *Tested* is what `constraints.txt` pins: the tests and the figures of
these pages were made with it. Other versions from the first on should work. Nobody has tried all of them."""

SYSTEMS = """## Operating systems

| system | state |
| --- | --- |
| Linux | supported; every test runs there |
| macOS | not tested; it has the locks and the file operations that a store needs |
| Windows | not supported: a store is locked with `fcntl`, and its directories are synced, for which Windows has no calls |

A store belongs on a file system whose `flock`, `fsync` and `rename` do what POSIX says. Network file systems are not tested."""

DEVICES = """## Devices

| device | state |
| --- | --- |
| CPU | supported; 32 bits by default |
| NVIDIA GPU | written for, and **not run on one yet** |
| other GPUs | not tested |

The Triton kernels pass their tests in Triton's interpreter, and compile for sm_80 and sm_90."""

FAMILIES = """## Model families

Each family is tested with a small random model: prefill, store and load give what a plain prefill by transformers gives. The
embedded model (SmolLM2-135M-Instruct, from a GGUF of 4 bits) is tested with its real weights.

kvtool knows no family by name. It looks at the configuration and at what a pass leaves in the cache, and refuses a model that
does not fit. Answers of every other family that transformers has were compared, too, or the family was refused:
[families tried](../results/families.md)."""

REFUSED = """## Models that are refused

| model | why |
| --- | --- |
| recurrent and hybrid models | their state is not one key and one value for every token in every layer |
| chunked attention, layers that share a cache | the same |
| encoder-decoders | kvtool caches decoder-only models |
| ALiBi, GPT-Neo's local attention, no `position_ids` (BLOOM, MPT) | they take positions from the cache, which questions share |
| attention to later tokens, as in BERT | a document's keys and values would depend on the question |
| a sliding window that the model's code ignores (Moshi) | transformers cuts its own cache to the window, and answers otherwise |
| models that token ids alone do not run | kvtool caches text |
| an adapter beside the weights, a distributed checkpoint | transformers would load them, and no fingerprint would tell |
| weights that lack tensors | transformers would fill in random numbers |
| models with code of their own | kvtool never sets `trust_remote_code` |
| weights in pickle files | only safetensors and GGUF are read |"""

PARTLY = """## What some models cannot do

| model | what is missing |
| --- | --- |
| attention that does not go through transformers' `AttentionInterface` | recipes and blend policies that measure attention |
| keys rotated in no known form | recipes that code keys before RoPE; blending, unless everything is recomputed |
| documents longer together than one rotation holds for | blending, unless everything is recomputed |
| rotations that change with the length (LongRoPE, as in Phi-3) | the context beyond `original_max_position_embeddings` |
| latent attention (MLA) | recipes that need queries of the keys' size |"""


def page() -> str:
    return whole_page(
        "Support",
        "pyproject.toml, constraints.txt, tests/families.py and docsgen/support.py",
        "## Versions",
        INTRO,
        table(("package", "at least", "tested", "for"), versions()),
        SYSTEMS,
        DEVICES,
        FAMILIES,
        table(("family", "configuration", "attention"), families()),
        REFUSED,
        PARTLY,
    )


def versions() -> list[tuple[str, ...]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = {name: needed for name, needed in project["optional-dependencies"].items() if name != "dev"}
    rows = [("Python", project["requires-python"].removeprefix(">="), "3.11", "–")]
    for extra, needed in {"": project["dependencies"], **extras}.items():
        for requirement in needed:
            name, least = re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)(?:,.*)?", requirement).groups()
            if name in SHOWN:
                rows.append((name, least, pinned[name], f"`kvtool[{extra}]`" if extra else "–"))
    return rows  # type: ignore[return-value]


def families() -> list[tuple[str, str, str]]:
    path = ROOT / "tests/families.py"
    spec = importlib.util.spec_from_file_location("families", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        (name, code(config.__name__), attention(options))
        for name, (config, options) in module.FAMILIES.items()
    ]


def attention(options: dict[str, Any]) -> str:
    """What is particular, by the options that a family's tiny model is made with."""
    kinds = options.get("layer_types", ())
    if "kv_lora_rank" in options:
        seen = "latent"
    elif "sliding_window" in options:
        seen = "sliding and full" if "full_attention" in kinds else "sliding"
    else:
        seen = "full"
    experts = ", experts" if {"num_local_experts", "n_routed_experts"} & options.keys() else ""
    scaled = ", scaled RoPE" if "rope_parameters" in options else ""
    return seen + scaled + experts
