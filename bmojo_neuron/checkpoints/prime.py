"""Priming: a Transformer's checkpoint becomes a hybrid's (spec/checkpoints section 9, stage 0).

What has a counterpart is copied: embedding, norms, MLPs, attention layers that stay. Where a layer
is replaced, its attention's matrices become the mixer's: values write, keys say where, queries
read. The rest is drawn as for a new model.

Letters: H query heads, Hk kv heads, r = H / Hk.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmojo_neuron.checkpoints.hybrid_qwen3 import BLOCKS
from bmojo_neuron.checkpoints.loading import Checkpoint, open_checkpoint, our_shapes
from bmojo_neuron.checkpoints.staging import check_new, whole
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.layers import BMojo
from bmojo_neuron.mixers.gated import GatedMixer
from bmojo_neuron.mixers.mamba2 import Mamba2

LETTERS = BLOCKS | {"BM": "bmojo"}  # of a pattern


def prime(
    base: Path,
    target: Path,
    pattern: str,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> BMojoConfig:
    """Write a hybrid that starts from a Transformer.

    Args:
        base: a directory of any family whose layers are all attention.
        target: a directory that does not exist, or is empty.
        pattern: one of LETTERS for each layer, joined by "-": `*-BM-*-BM`.
        seed: of what is drawn.
        dtype: of the weights; None: the base's.
        options: fields of BMojoConfig: mixer, window, eidetic_size and so on.

    Returns:
        The new architecture.

    Raises:
        ValueError: the base is not whole or no Transformer, the pattern does not fit it, or the
            target holds something. Nothing has been written then.
    """
    check_new(target)
    checkpoint = open_checkpoint(base)
    config = hybrid_config(checkpoint.config, pattern, options)
    from bmojo_neuron.causal_lm import BMojoForCausalLM
    from bmojo_neuron.checkpoints.convert import copy_others

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BMojoForCausalLM(config)
        parameters = dict(model.named_parameters())
        shapes = our_shapes(checkpoint.config)
        for name in checkpoint.names.keys() & parameters.keys():
            parameters[name].copy_(checkpoint.read(name, shapes[name]))
        for i, block in enumerate(model.model.layers):
            if isinstance(block.layer, Mamba2 | GatedMixer | BMojo):
                _feed_layer(block.layer, _Attention(checkpoint, shapes, i))
    nn.Module.to(model, dtype or checkpoint.config.dtype or torch.float32)
    with whole(target) as part:
        model.save_pretrained(part)
        copy_others(base, part)
    return config


def hybrid_config(base: BMojoConfig, pattern: str, options: dict[str, Any]) -> BMojoConfig:
    """The base's architecture with the layers of `pattern`.

    Raises:
        ValueError: the base has other layers than attention, or the pattern does not fit it.
    """
    if set(base.block_types) - {"attention", "sliding_attention"}:
        raise ValueError(
            f"base: expected a Transformer, got layers {', '.join(sorted(set(base.block_types)))}"
        )
    tokens = pattern.split("-")
    unknown = sorted(set(tokens) - LETTERS.keys())
    if unknown or len(tokens) != base.num_hidden_layers:
        raise ValueError(
            f"pattern: expected {base.num_hidden_layers} of {', '.join(LETTERS)}, joined by '-', "
            f"got {pattern!r}"
        )
    kept = {
        f.name: getattr(base, f.name)
        for f in fields(base)
        if not f.name.startswith(("mamba_", "mamba2_", "gdn_", "gka_", "window", "selection"))
    }
    # "*" is the layer that stays, which in a base with windows is one with its window.
    pairs = list(zip(tokens, base.block_types, strict=True))
    types = [was if token == "*" else LETTERS[token] for token, was in pairs]
    kept |= {"block_types": types, "architectures": None}
    if ("*", "sliding_attention") in pairs:
        size = options.get("sliding_window", base.sliding_window)
        if "SWA" in tokens and size != base.sliding_window:
            raise ValueError(
                f"window: expected {base.sliding_window}, the base's own, as layers with it stay "
                f"beside SWA, got {size}"
            )
        options = options | {"sliding_window": base.sliding_window}
    kept |= {"mamba2_qk_norm": base.qk_norm, "window": base.window, "id2label": None} | options
    for name in ("label2id", "transformers_version", "problem_type"):
        kept.pop(name, None)
    return BMojoConfig(**kept)


class _Attention:
    """The matrices of the attention that a layer replaces: q, k, v (heads, d), o (d, heads)."""

    def __init__(self, checkpoint: Checkpoint, shapes: Any, layer: int) -> None:
        self._checkpoint, self._shapes = checkpoint, shapes
        self._at = f"model.layers.{layer}.layer."

    def __getitem__(self, name: str) -> Tensor:
        name = self._at + name
        return self._checkpoint.read(name, self._shapes[name])

    def __contains__(self, name: str) -> bool:
        return self._at + name in self._shapes

    def gate(self) -> Tensor:
        """Of the output: the mean of W_o^T and of W_v, each of whose rows is repeated r times."""
        o, v = self["o_proj.weight"].T, self["qkv.v_proj.weight"]
        return 0.5 * (o + v.repeat_interleave(len(o) // len(v), dim=0))


def _feed_layer(layer: nn.Module, attention: _Attention) -> None:
    if isinstance(layer, BMojo):
        _feed_layer(layer.mixer, attention)
        for name, parameter in layer.named_parameters():
            source = name.replace("fading_qkv.", "qkv.")
            if not name.startswith(("mixer.", "eidetic.")):
                parameter.copy_(attention[source])
    elif isinstance(layer, Mamba2):
        inner = layer.heads * layer.head_dim
        rows = [inner, *layer.widths, layer.heads]
        z, x, b, c, _ = layer.in_proj.weight.split(rows)
        z.copy_(attention.gate())
        for part, name in ((x, "v"), (b, "k"), (c, "q")):
            part.copy_(attention[f"qkv.{name}_proj.weight"])
        layer.out_proj.weight.copy_(attention["o_proj.weight"])
        for norm, name in ((layer.b_norm, "k"), (layer.c_norm, "q")):
            if isinstance(norm, nn.Identity) or f"qkv.{name}_norm.weight" not in attention:
                continue
            norm.weight.copy_(attention[f"qkv.{name}_norm.weight"])
    elif isinstance(layer, GatedMixer):
        for name in "qkv":
            weight = layer.get_parameter(f"{name}_proj.weight")
            weight.copy_(attention[f"qkv.{name}_proj.weight"])
        layer.o_proj.weight.copy_(attention["o_proj.weight"])
        if layer.g_proj is not None:
            layer.g_proj.weight.copy_(attention.gate())
