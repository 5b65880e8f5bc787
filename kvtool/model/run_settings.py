"""What a model's files say of how to run it, and what is kept of that: kvtool runs every model alike."""

from __future__ import annotations

from typing import Any

import transformers


def use_our_settings(model: Any) -> None:
    """Gives a transformers ``model`` the settings that kvtool runs models with, whatever its files say.

    Of ``generation_config.json`` the special tokens stay: they end an answer. Penalties, forbidden tokens, beams, kinds of
    cache and ``use_cache`` left over from training would make an answer depend on the way of asking.
    """
    tokens = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        use_cache=True,
        do_sample=False,
    )
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.use_cache = config.return_dict = True
        config.output_attentions = config.output_hidden_states = False
