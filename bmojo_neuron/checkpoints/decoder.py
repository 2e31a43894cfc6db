"""What transformers' decoders have in common: a stack of attention and SwiGLU layers.

`bmojo_neuron.checkpoints.{qwen3,llama,mistral}` say what sets each apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from transformers import PretrainedConfig

from bmojo_neuron.checkpoints.parsing import parse, require
from bmojo_neuron.configuration import BMojoConfig

SAME = (  # alike on both sides
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    *("initializer_range", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "dtype"),
)
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")


def parse_decoder(
    given: Mapping[str, Any], kind: type[PretrainedConfig], without_effect: Set[str] = frozenset()
) -> Any:
    """See `parsing.parse`."""
    theirs = parse(given, kind, SIZES, without_effect)
    split = getattr(theirs, "pretraining_tp", None)
    require(split in (1, None), "pretraining_tp", "1 or null", split)
    return theirs


def config_of(theirs: Any, sliding: list[bool], **own: Any) -> BMojoConfig:
    """The same model as a BMojoConfig.

    Args:
        theirs: as from `parse_decoder`.
        sliding: per layer, whether it attends to `theirs.sliding_window` tokens or to all.
        own: fields of BMojoConfig that set the family apart.

    Raises:
        ValueError: as BMojoConfig does, or there is no window for a sliding layer.
    """
    own |= {name: getattr(theirs, name) for name in SAME}
    if any(sliding):
        window = theirs.sliding_window
        if window is None or window < 1:
            raise ValueError(
                f"sliding_window: expected an integer of at least 1, got {window!r}; null for "
                "full attention"
            )
        own["window"] = window
    if own["pad_token_id"] is not None and own["pad_token_id"] < 0:  # an old way to say "none"
        own["pad_token_id"] = None
    rope = {key: value for key, value in theirs.rope_parameters.items() if key != "type"}
    types = ["sliding_attention" if slides else "attention" for slides in sliding]
    return BMojoConfig(block_types=types, rope_parameters=rope, **own)


def names(config: BMojoConfig) -> dict[str, str]:
    """Our tensors' names and theirs, each once; a tied `lm_head` is absent on both sides."""
    table = {name: name for name in ("model.embed_tokens.weight", "model.norm.weight")}
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = "lm_head.weight"
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        for ours, theirs in _layer(config).items():
            table[at + ours] = at + theirs
    return table


def _layer(config: BMojoConfig) -> dict[str, str]:
    norms = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.qk_norm:
        norms |= {f"layer.qkv.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    attention = {f"layer.qkv.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"}
    attention["layer.o_proj"] = "self_attn.o_proj"
    mlp = {f"mlp.{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    table = {f"{ours}.weight": f"{its}.weight" for ours, its in (norms | attention | mlp).items()}
    for biased, linears in ((config.attention_bias, attention), (config.mlp_bias, mlp)):
        if biased:
            table |= {f"{ours}.bias": f"{theirs}.bias" for ours, theirs in linears.items()}
    return table
