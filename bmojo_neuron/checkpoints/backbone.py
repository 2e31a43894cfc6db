"""What transformers' Mamba and Mamba-2 have in common: a stack of mixers, each behind a norm.

`bmojo_neuron.checkpoints.{mamba,mamba2}` say what sets each apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmojo_neuron.configuration import BMojoConfig

SAME = (  # alike on both sides
    *("vocab_size", "hidden_size", "num_hidden_layers", "initializer_range", "use_cache", "dtype"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
# Keys of the authors' own files. What only steers training or the choice of a kernel has no effect
# either (`time_step_min`, `chunk_size` ...), nor has `residual_in_fp32`: our residuals have the
# model's dtype.
WITHOUT_EFFECT = {
    *("d_model", "d_inner", "intermediate_size", "n_layer", "ssm_cfg", "rms_norm"),
    *("fused_add_norm", "norm_before_gate", "pad_vocab_size_multiple"),
}
# The authors' own name, which transformers takes too.
ALIASES = (("backbone.embeddings.", "backbone.embedding."),)


def config_of(theirs: Any, block_type: str, **own: Any) -> BMojoConfig:
    """The same model as a BMojoConfig.

    Args:
        theirs: as from `parsing.parse`.
        block_type: of all layers.
        own: fields of BMojoConfig that set the family apart.
    """
    return BMojoConfig(
        block_types=[block_type] * theirs.num_hidden_layers,
        intermediate_size=0,
        rms_norm_eps=theirs.layer_norm_epsilon,
        num_attention_heads=1,  # there is no attention; its heads fit any hidden_size
        head_dim=2,
        **own,
        **{name: getattr(theirs, name) for name in SAME},
    )


def names(
    config: BMojoConfig, conv_bias: bool, proj_bias: bool, own: Mapping[str, str]
) -> dict[str, str]:
    """Our tensors' names and theirs, each once; a tied `lm_head` is absent on both sides.

    Args:
        config: the model.
        conv_bias: there is a bias in the convolution,
        proj_bias: and in the projections.
        own: names within the mixer that set the family apart.
    """
    mixer = {
        "in_proj.weight": "in_proj.weight",
        "conv.weight": "conv1d.weight",
        "a_log_bias": "A_log",
        "skip_bias": "D",
        "out_proj.weight": "out_proj.weight",
        **own,
    }
    if conv_bias:
        mixer["conv.bias"] = "conv1d.bias"
    if proj_bias:
        mixer |= {"in_proj.bias": "in_proj.bias", "out_proj.bias": "out_proj.bias"}
    table = {
        "model.embed_tokens.weight": "backbone.embeddings.weight",
        "model.norm.weight": "backbone.norm_f.weight",
    }
    for i in range(config.num_hidden_layers):
        ours, its = f"model.layers.{i}.", f"backbone.layers.{i}."
        table[f"{ours}input_norm.weight"] = f"{its}norm.weight"
        table |= {f"{ours}layer.{a}": f"{its}mixer.{b}" for a, b in mixer.items()}
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = "lm_head.weight"
    return table
