"""The sequence layers: attention (full or sliding) and B'MOJO, over one set of q/k/v projections.

Letters: B batch, T tokens, d hidden size, N rows of queries, Q queries per row, H query heads,
Hk kv heads, D head dim, W window, M eidetic slots.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.eidetic import EideticMemory
from bmojo_neuron.mixers import MIXERS
from bmojo_neuron.norm import RMSNorm
from bmojo_neuron.ops import Ops
from bmojo_neuron.ops.memory_attention import Memory
from bmojo_neuron.state import State, StatePart
from bmojo_neuron.window import Call, FullCall


class Projections(nn.Module):
    """q, k, v by head, with an RMS norm per head on q and k where the configuration says so."""

    def __init__(self, config: BMojoConfig) -> None:
        super().__init__()
        d, self.head_dim = config.hidden_size, config.head_dim
        inner, inner_kv = (
            heads * self.head_dim
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(d, inner, bias=config.attention_bias)
        self.k_proj = nn.Linear(d, inner_kv, bias=config.attention_bias)
        self.v_proj = nn.Linear(d, inner_kv, bias=config.attention_bias)
        self.q_norm, self.k_norm = (
            RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
            for _ in "qk"
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)

    def query(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, H, T, D), scaled by D^-0.5, with `qk_norm` normed; not yet rotated."""
        q: Tensor = self.q_norm(self._heads(self.q_proj(x))) * self.head_dim**-0.5
        return q

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, d) -> two (B, Hk, T, D); with `qk_norm` the key normed; not yet rotated."""
        k: Tensor = self.k_norm(self._heads(self.k_proj(x)))
        return k, self._heads(self.v_proj(x))


def attend(ops: Ops, memories: list[Memory]) -> Tensor:
    """Memory attention in one dtype: under autocast, states keep more bits than projections."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for m in memories for x in m[:3]))
    return ops.memory_attention(
        [m._replace(q=m.q.to(dtype), k=m.k.to(dtype), v=m.v.to(dtype)) for m in memories]
    )


def ring_parts(
    name: str, config: BMojoConfig, size: int | None, dtype: torch.dtype
) -> list[StatePart]:
    """Keys and values of a ring of `size` tokens, or of one that grows with the history (None)."""
    shape = (config.num_key_value_heads, size or 0, config.head_dim)
    grows = 1 if size is None else None
    return [StatePart(f"{name}_{x}", shape, dtype, grows=grows) for x in ("k", "v")]


class Attention(nn.Module):
    """Causal softmax attention over the last W tokens, or over all of them."""

    def __init__(self, config: BMojoConfig, ops: Ops, window: int | None) -> None:
        super().__init__()
        self.config, self.ops, self.window = config, ops, window
        self.qkv = Projections(config)
        inner = config.num_attention_heads * config.head_dim
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """A ring of W keys and values, or all of them."""
        return ring_parts("context", self.config, self.window, dtype)

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """u (B, T, d) -> the layer's output (B, T, d) and its new state."""
        if self.window is None and isinstance(call, FullCall):
            call = call.whole()
        q, (k, v) = self.qkv.query(u), self.qkv.key_value(u)
        q, k = call.here(q), call.here(k)
        memories, new = call.context(call.rows(q), k, v, state, self.window)
        y: Tensor = self.o_proj(call.unrows(attend(self.ops, memories)))
        return y, new


class BMojo(nn.Module):
    """One softmax over three memories: in-context, fading and, with `eidetic`, eidetic."""

    def __init__(self, config: BMojoConfig, ops: Ops, eidetic: bool) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.mixer = MIXERS[config.mixer](config, ops)
        self.qkv = Projections(config)
        self.fading_qkv = None if config.tie_fading_projections else Projections(config)
        self.eidetic = EideticMemory(config, ops) if eidetic else None
        inner = config.num_attention_heads * config.head_dim
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """The mixer's state, rings of W in-context and 2W fading tokens, and eidetic memory."""
        return [
            *self.mixer.parts(dtype),
            *ring_parts("context", self.config, self.config.window, dtype),
            *ring_parts("fading", self.config, 2 * self.config.window, dtype),
            *(self.eidetic.parts(dtype) if self.eidetic else []),
        ]

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """u (B, T, d) -> the layer's output (B, T, d) and its new state."""
        window, boundary = self.config.window, self.config.eidetic_position == "boundary"
        f, new = self.mixer(u, call, state)
        q = self.qkv.query(u)
        (k, v), (fading_k, fading_v) = self._keys_values(u, f)
        q_here, k_here = call.rows(call.here(q)), call.here(k)
        q_fading = q_here
        if self.fading_qkv is not None:
            q_fading = call.rows(call.here(self.fading_qkv.query(u)))

        memories, rings = call.context(q_here, k_here, v, state, window)
        fading, fading_rings = call.fading(q_fading, call.here(fading_k), fading_v, state, window)
        memories, new = memories + fading, new | rings | fading_rings
        if self.eidetic is not None:
            q_eidetic = call.rows(call.behind(q)) if boundary else q_here
            k_eidetic = k if boundary else k_here
            memory, parts = self.eidetic(q_eidetic, k_eidetic, v, f, call, state)
            memories, new = [*memories, memory], new | parts
        y: Tensor = self.o_proj(call.unrows(attend(self.ops, memories)))
        return y, new

    def _keys_values(
        self, u: Tensor, f: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Keys and values of the in-context (from u) and of the fading tokens (from f)."""
        if self.fading_qkv is not None:
            return self.qkv.key_value(u), self.fading_qkv.key_value(f)
        k, v = self.qkv.key_value(torch.cat([u, f], dim=1))  # tied: the weights are read once
        (k, fading_k), (v, fading_v) = k.chunk(2, dim=2), v.chunk(2, dim=2)
        return (k, v), (fading_k, fading_v)
