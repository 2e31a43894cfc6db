"""Hybrid-Qwen3: Transformers whose layers were replaced by state-space mixers, window attention or
B'MOJO-F (awslabs/hybrid-model-factory; spec/checkpoints sections 2 to 4).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig

from bmojo_neuron.checkpoints.reading import Shape
from bmojo_neuron.configuration import BMojoConfig

MODEL_TYPE = "hybrid_qwen3"
ARCHITECTURE = "HybridQwen3ForCausalLM"
# A layer-importance variant keeps the names of the attention that its window was put on.
ALIASES = ((".swa.", ".self_attn."),)

BLOCKS = {
    "*": "attention",
    "SWA": "sliding_attention",
    "M2": "mamba2",
    "GDN": "gdn",
    "GKA": "gka",
    "BMF": "bmojo_f",
}
# Layers of training, which hold a memory and the attention that it is trained after: what stays.
FUSED = {"*DA": "*"} | {f"{token}*": token for token in BLOCKS if token != "*"}
MEMORIES = ("self_attn", "swa", "mamba", "gdn", "gka", "bmojo_f")  # attributes of a layer
MIXED = "GDN>GKA"  # one memory trained after another
MIXERS = {  # bmojo_config.ssm_mixer -> ours
    **{name: name for name in ("mamba2", "gdn", "gka")},
    "gated_deltanet": "gdn",
    "gated_kalmanet": "gka",
    "parallel_latent_sketch": "gka",
}
OPTIONS = {  # of each mixer: the dict that holds them; their key -> our field
    "mamba2": (
        "mamba2_config",
        {"use_qk_norm": "mamba2_qk_norm", "use_pos_emb": "mamba2_rope"},
    ),
    "gdn": (
        "gdn_config",
        {
            "use_gate": "gdn_gate",
            "use_short_conv": "gdn_short_conv",
            "allow_neg_eigval": "gdn_negative_eigenvalues",
            "conv_size": "gdn_conv_size",
            "conv_bias": "gdn_conv_bias",
            "norm_eps": "gdn_norm_eps",
        },
    ),
    "gka": (
        "gka_config",
        {
            "use_alpha_connection": "gka_alpha_connection",
            "use_v_conv": "gka_v_conv",
            "use_forgetting_gate": "gka_forgetting_gate",
            "use_forgetting_gate_kk": "gka_forgetting_gate_kk",
            "gla_rescale": "gka_rescale",
            "num_iter": "gka_num_iter",
            "ridge_strength": "gka_ridge",
            "use_gate": "gka_gate",
            "use_beta_gate": "gka_beta_gate",
            "conv_size": "gka_conv_size",
            "norm_eps": "gka_norm_eps",
        },
    ),
}
OPTIONS_FIXED = {  # of any mixer: what no released model sets
    "kv_proj_rank": (None,),
    "kv_learnable_residual": (False, None),
    "solver_type": ("chebyshev",),
}
OPTIONS_IGNORED = {  # of training, tiles of a kernel, or copies of the base keys
    *("bp_lambda", "chunk_size", "hidden_size", "head_dim", "num_heads", "num_key_value_heads"),
    *("num_q_heads", "num_k_heads", "num_v_heads", "rms_norm_eps", "hidden_act", "n_layer"),
    *("d_model", "d_inner", "d_xb", "intermediate_size", "ssm_cfg"),
}
SAME = (  # keys of the same name and meaning
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "use_cache", "tie_word_embeddings", "rope_parameters", "attention_bias"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype"),
)
DEFAULTS: dict[str, Any] = {"head_dim": 128, "tie_word_embeddings": False}  # not ours
READ_BY = {  # how names of our fields begin -> the layer or mixer without which nothing reads them
    **dict.fromkeys(("eidetic_", "innovation_", "selection_"), "bmojo"),
    **dict.fromkeys(("window", "mixer", "tie_fading_projections"), "bmojo_f"),
    "sliding_window": "sliding_attention",
    **{f"{mixer}_": mixer for mixer in ("mamba", "mamba2", "gdn", "gka")},
}
FIXED = {  # what the mixers' code fixes, or our model does
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
}
IGNORED = (  # of training, derived from others, or of the file alone
    *("model_type", "architectures", "transformers_version", "layer_types", "attention_dropout"),
    *("sliding_window", "max_window_layers", "torch_dtype", "rope_theta", "rope_scaling"),
    *("_name_or_path", "hybrid_override_pattern"),
    *("bojo_config", "bmojo_config", "mamba2_config", "gdn_config", "gka_config", "swa_config"),
    *("gka_overrides", "output_attentions", "output_hidden_states", "return_dict", "problem_type"),
    *("id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder"),
)


class HybridQwen3Config(PretrainedConfig):
    """How AutoConfig finds this family; what it returns is a `BMojoConfig`."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `read_config`."""
        unused = kwargs.pop("return_unused_kwargs", False)
        config = read_config(config_dict)
        return (config, kwargs) if unused else config


def read_config(given: Mapping[str, Any]) -> BMojoConfig:
    """The architecture that a config.json describes.

    Raises:
        ValueError: a key is unknown, or says what the format or this model does not know.
    """
    for name, allowed in FIXED.items():
        if given.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name}: expected {allowed[0]!r}, got {given[name]!r}")
    for name in given:
        if name not in (*SAME, *FIXED, *IGNORED):
            raise ValueError(f"{name}: expected a key of {MODEL_TYPE}, got an unknown one")
    if given.get("intermediate_size") == 0:
        raise ValueError(f"intermediate_size: expected an MLP in each layer of {MODEL_TYPE}, got 0")
    pattern = _pattern(given)
    fields = DEFAULTS | {name: given[name] for name in SAME if given.get(name) is not None}
    fields["rope_parameters"] = _rope(given)
    if "torch_dtype" in given:
        fields.setdefault("dtype", given["torch_dtype"])
    if "BMF" in pattern:
        bmojo = given.get("bmojo_config") or {}
        _known(bmojo, "bmojo_config", ("window_size", "tie_attn_weights", "ssm_mixer"))
        mixer = bmojo.get("ssm_mixer", "mamba2")
        if mixer not in MIXERS:
            known = ", ".join(MIXERS)
            raise ValueError(f"bmojo_config.ssm_mixer: expected one of {known}, got {mixer!r}")
        fields |= {
            "mixer": MIXERS[mixer],
            "window": _window(bmojo.get("window_size", 2048), "bmojo_config"),
            "tie_fading_projections": bmojo.get("tie_attn_weights", True),
        }
    for where, options in OPTIONS.values():
        fields |= _options(given, where, options)
    if "SWA" in pattern:
        swa = given.get("swa_config") or {}
        _known(swa, "swa_config", ("window_size",))
        fields["sliding_window"] = _window(swa.get("window_size"), "swa_config")
    return BMojoConfig(
        block_types=[BLOCKS[token] for token in pattern],
        eidetic_size=0,
        **fields,
    )


def unfuse(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json with one memory in each layer, as after training."""
    pattern = given.get("hybrid_override_pattern")
    if not isinstance(pattern, str):
        return dict(given)
    tokens = [FUSED.get(token, token) for token in pattern.split("-")]
    return {**given, "hybrid_override_pattern": "-".join(tokens)}


def left_out(given: Mapping[str, Any], named: Collection[str], held: Iterable[str]) -> list[str]:
    """The tensors that unfusing leaves out.

    Args:
        given: config.json, still fused.
        named: tensors that the unfused model has.
        held: tensors that the checkpoint has.
    """
    tokens = str(given.get("hybrid_override_pattern")).split("-")
    places = [f"model.layers.{i}." for i, token in enumerate(tokens) if token in FUSED]
    chosen = [i for i, token in enumerate(tokens) if token in MIXED.split(">")]  # by the user
    places += [f"model.layers.{i}.{memory}." for i in chosen for memory in MEMORIES]
    return [name for name in held if name.startswith(tuple(places)) and name not in named]


def write_config(config: BMojoConfig) -> dict[str, Any]:
    """The config.json of a model that this format can hold.

    Raises:
        ValueError: it cannot; the message names the field.
    """
    letters = {block: token for token, block in BLOCKS.items()}
    unknown = sorted(set(config.block_types) - letters.keys())
    if unknown:
        raise ValueError(
            f"block_types: expected only {', '.join(letters)}, which {MODEL_TYPE} has, got "
            f"{', '.join(unknown)}"
        )
    pattern = [letters[block] for block in config.block_types]
    if "BMF" in pattern and config.mixer not in OPTIONS:
        raise ValueError(
            f"mixer: expected one of {', '.join(OPTIONS)}, which {MODEL_TYPE} has, got "
            f"{config.mixer!r}"
        )
    given = {name: getattr(config, name) for name in SAME}
    given |= {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "dtype": None if config.dtype is None else str(config.dtype).removeprefix("torch."),
        "hidden_act": "silu",
        "hybrid_override_pattern": "-".join(pattern),
        "layer_types": pattern,
    }
    used = set(config.block_types) | ({config.mixer} if "BMF" in pattern else set())
    for mixer in sorted(used & OPTIONS.keys()):
        where, options = OPTIONS[mixer]
        given[where] = {theirs: getattr(config, ours) for theirs, ours in options.items()}
    if "BMF" in pattern:
        given["bmojo_config"] = {
            "window_size": config.window,
            "tie_attn_weights": config.tie_fading_projections,
            "ssm_mixer": config.mixer,
        }
    if "SWA" in pattern:
        given["swa_config"] = {"window_size": config.sliding_window}
    held = read_config(given)
    unread = tuple(name for name, reader in READ_BY.items() if reader not in used)
    for name in BMojoConfig.__annotations__:
        fixed, value = getattr(held, name), getattr(config, name)
        if fixed != value and not name.startswith(unread):
            raise ValueError(f"{name}: expected {fixed!r}, as {MODEL_TYPE} has it, got {value!r}")
    return given


# Within a layer: ours -> theirs. A table for each kind of module.
ATTENTION = {
    **{f"qkv.{x}_proj.weight": f"{x}_proj.weight" for x in "qkv"},
    **{f"qkv.{x}_norm.weight": f"{x}_norm.weight" for x in "qk"},
    "o_proj.weight": "o_proj.weight",
}
BIASES = {  # with attention_bias
    **{f"qkv.{x}_proj.bias": f"{x}_proj.bias" for x in "qkv"},
    "o_proj.bias": "o_proj.bias",
}
FADING = {  # untied copies, named with a trailing "_"
    **{f"fading_qkv.{x}_proj.weight": f"{x}_proj_.weight" for x in "qkv"},
    **{f"fading_qkv.{x}_norm.weight": f"{x}_norm_.weight" for x in "qk"},
}
FADING_BIASES = {f"fading_qkv.{x}_proj.bias": f"{x}_proj_.bias" for x in "qkv"}
MAMBA2 = {
    "in_proj.weight": "in_proj.weight",
    "conv.weight": "conv1d.weight",
    "conv.bias": "conv1d.bias",
    "b_norm.weight": "B_norm.weight",
    "c_norm.weight": "C_norm.weight",
    "dt_bias": "dt_bias",
    "a_log_bias": "A_log",
    "skip_bias": "D",
    "norm": "norm.weight",
    "out_proj.weight": "out_proj.weight",
}
GATED = {
    **{f"{x}_proj.weight": f"{x}_proj.weight" for x in ("q", "k", "v", "b", "g", "o")},
    **{f"{x}_conv.weight": f"{x}_conv1d.weight" for x in "qkv"},
    "a_log_bias": "A_log",
    "dt_bias": "dt_bias",
    "o_norm.weight": "o_norm.weight",
}
GDN = GATED | {
    "a_proj.weight": "gk_proj.weight",
    **{f"{x}_conv.bias": f"{x}_conv1d.bias" for x in "qkv"},
}
GKA = GATED | {
    "a_proj.weight": "a_proj.weight",
    "b_proj.bias": "b_proj.bias",
    "alpha_proj.weight": "alpha_proj.weight",
    "alpha_proj.bias": "alpha_proj.bias",
}
MIXER_TABLES = {"mamba2": ("mamba", MAMBA2), "gdn": ("gdn", GDN), "gka": ("gka", GKA)}
BLOCK = {
    "input_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **{f"mlp.{x}_proj.weight": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}


def names(config: BMojoConfig) -> dict[str, str]:
    """Our tensor name -> theirs."""
    out = {"model.embed_tokens.weight": "model.embed_tokens.weight"}
    for i, block in enumerate(config.block_types):
        at = f"model.layers.{i}."
        out |= {at + ours: at + theirs for ours, theirs in BLOCK.items()}
        layer = {f"{at}layer.{ours}": at + theirs for ours, theirs in _layer(config, block).items()}
        out |= layer
    out["model.norm.weight"] = "model.norm.weight"
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = "lm_head.weight"
    return out


def shape_of(name: str, ours: Shape) -> Shape:
    """Of a tensor in this format, from that of ours: convolutions have an axis more, the norm of
    Mamba-2's heads is flat.
    """
    if name.endswith("conv1d.weight"):
        return (ours[0], 1, ours[1])
    return (math.prod(ours),) if name.endswith("norm.weight") else ours


def _layer(config: BMojoConfig, block: str) -> dict[str, str]:
    """Names within a layer, as our module and theirs have them."""
    table = ATTENTION | (BIASES if config.attention_bias else {})
    match block:
        case "attention":
            return {ours: f"self_attn.{theirs}" for ours, theirs in table.items()}
        case "sliding_attention":
            return {ours: f"swa.{theirs}" for ours, theirs in table.items()}
        case "bmojo_f":
            if not config.tie_fading_projections:
                table |= FADING | (FADING_BIASES if config.attention_bias else {})
            attention = {ours: f"bmojo_f.bmojo_attn.{theirs}" for ours, theirs in table.items()}
            mixer = _mixer(config, config.mixer)
            return attention | {
                f"mixer.{ours}": f"bmojo_f.{theirs}" for ours, theirs in mixer.items()
            }
        case _:
            return _mixer(config, block)


def _mixer(config: BMojoConfig, kind: str) -> dict[str, str]:
    attribute, table = MIXER_TABLES[kind]
    c = config
    switches = {
        "mamba2": {"b_norm": c.mamba2_qk_norm, "c_norm": c.mamba2_qk_norm},
        "gdn": {
            "g_proj": c.gdn_gate,
            **{f"{x}_conv": c.gdn_short_conv for x in "qkv"},
            **{f"{x}_conv.bias": c.gdn_short_conv and c.gdn_conv_bias for x in "qkv"},
        },
        "gka": {
            "g_proj": c.gka_gate,
            "v_conv": c.gka_v_conv,
            "b_proj": c.gka_beta_gate,
            "alpha_proj": c.gka_alpha_connection,
        },
    }[kind]
    absent = tuple(name for name, on in switches.items() if not on)
    return {
        ours: f"{attribute}.{theirs}"
        for ours, theirs in table.items()
        if not any(ours == name or ours.startswith(f"{name}.") for name in absent)
    }


def _options(given: Mapping[str, Any], where: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """A mixer's dict as fields of ours."""
    options = given.get(where) or {}
    if where == "gka_config":
        options = options | (given.get("gka_overrides") or {})
    for name, value in options.items():
        if value not in OPTIONS_FIXED.get(name, (value,)):
            raise ValueError(f"{where}.{name}: expected {OPTIONS_FIXED[name][0]!r}, got {value!r}")
    _known([name for name in options if name not in OPTIONS_FIXED], where, fields)
    return {ours: options[theirs] for theirs, ours in fields.items() if theirs in options}


def _pattern(given: Mapping[str, Any]) -> list[str]:
    written = given.get("hybrid_override_pattern")
    if not isinstance(written, str):
        raise ValueError(f"hybrid_override_pattern: expected tokens joined by '-', got {written!r}")
    pattern, count = written.split("-"), given.get("num_hidden_layers")
    if len(pattern) != count:
        raise ValueError(
            f"hybrid_override_pattern: expected num_hidden_layers ({count}) tokens joined by '-', "
            f"got {len(pattern)}: {written!r}"
        )
    fused = sorted({token for token in pattern if token in FUSED})
    if fused:
        raise ValueError(
            f"hybrid_override_pattern: expected layers of one kind each, got {', '.join(fused)}, "
            "which hold attention and a mixer for training; `bmojo convert SRC DST --unfuse` "
            "leaves out the attention that they were trained after"
        )
    if MIXED in pattern:
        raise ValueError(
            f"hybrid_override_pattern: expected layers of one kind each, got {MIXED}; write the "
            "one that shall stay, GDN or GKA, in its place, then `bmojo convert SRC DST --unfuse`"
        )
    unknown = sorted(set(pattern) - BLOCKS.keys())
    if unknown:
        raise ValueError(
            f"hybrid_override_pattern: expected tokens of {', '.join(BLOCKS)}, got "
            f"{', '.join(unknown)}"
        )
    return pattern


def _known(names: Iterable[str], where: str, fields: Collection[str]) -> None:
    for name in names:
        if name not in fields and name not in OPTIONS_IGNORED:
            raise ValueError(f"{where}.{name}: expected one of {', '.join(fields)}")


def _window(size: object, where: str) -> int:
    if type(size) is not int or size < 1:
        raise ValueError(f"{where}.window_size: expected an integer of at least 1, got {size!r}")
    return size


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters`, and the older `rope_theta` and `rope_scaling` where it leaves them out."""
    older = {"rope_type": "default", "rope_theta": given.get("rope_theta", 10_000.0)}
    if given.get("rope_parameters"):
        return older | dict(given["rope_parameters"])
    scaling = dict(given.get("rope_scaling") or {})
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    return older | scaling
