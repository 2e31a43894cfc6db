"""The sequence layers: attention (full or sliding) and B'MOJO, over one set of q/k/v projections.

Letters: B batch, T tokens, d hidden size, H query heads, Hk kv heads, D head dim, W window, M eidetic slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.eidetic import EideticMemory
from bmojo_neuron.mixers import MIXERS
from bmojo_neuron.norm import RMSNorm
from bmojo_neuron.ops import Ops
from bmojo_neuron.ops.memory_attention import Memory
from bmojo_neuron.state import State, StatePart, recurrent_dtype
from bmojo_neuron.window import Call, FullCall, StepCall


class Projections(nn.Module):
    """q, k, v by head, with an RMS norm per head on q and k."""

    def __init__(self, config: BMojoConfig) -> None:
        super().__init__()
        d, self.head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(d, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * self.head_dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, D)

    def query(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, H, T, D), normed, not yet rotated."""
        return self.q_norm(self._heads(self.q_proj(x)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, d) -> two (B, Hk, T, D); the key normed, not yet rotated."""
        return self.k_norm(self._heads(self.k_proj(x))), self._heads(self.v_proj(x))


def ring_parts(name: str, config: BMojoConfig, size: int | None, dtype: torch.dtype) -> list[StatePart]:
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
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """A ring of W keys and values, or all of them."""
        return ring_parts("context", self.config, self.window, dtype)

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        q, (k, v) = self.qkv.query(u), self.qkv.key_value(u)
        q, k = call.here(q), call.here(k)
        scale = self.config.head_dim**-0.5
        if self.window is None and isinstance(call, FullCall):  # nothing before, all at once
            seen = call.causal()
            return self.o_proj(self.ops.memory_attention([Memory(q, k, v, seen)], scale).transpose(1, 2).flatten(2)), {}
        memories, new = context(q, k, v, call, state, self.window)
        return self.o_proj(call.unrows(self.ops.memory_attention(memories, scale))), new


class BMojo(nn.Module):
    """One softmax over three memories: in-context, fading and, with `eidetic`, eidetic."""

    def __init__(self, config: BMojoConfig, ops: Ops, eidetic: bool) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.mixer = MIXERS[config.mixer](config, ops)
        self.qkv = Projections(config)
        self.fading_qkv = None if config.tie_fading_projections else Projections(config)
        self.eidetic = EideticMemory(config, ops) if eidetic else None
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """The mixer's state, a ring of W in-context and one of 2W fading tokens, and eidetic memory."""
        return [
            *self.mixer.parts(dtype),
            *ring_parts("context", self.config, self.config.window, dtype),
            *ring_parts("fading", self.config, 2 * self.config.window, dtype),
            *(self.eidetic.parts(dtype) if self.eidetic else []),
        ]

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        window = self.config.window
        f, new = self.mixer(u, call, state)
        plain_q, (plain_k, v) = self.qkv.query(u), self.qkv.key_value(u)
        q, k = call.here(plain_q), call.here(plain_k)
        fading_q = q if self.fading_qkv is None else call.here(self.fading_qkv.query(u))
        fading_k, fading_v = (self.fading_qkv or self.qkv).key_value(f)
        fading_k = call.here(fading_k)

        memories, rings = context(q, k, v, call, state, window)
        new |= rings
        memories.append(
            Memory(  # tokens of this very chunk are never seen here: a chunk is at most W long
                call.rows(fading_q),
                call.past(fading_k, state, "fading_k", 2 * window),
                call.past(fading_v, state, "fading_v", 2 * window),
                call.visible(2 * window, near=window, far=2 * window),
            )
        )
        if isinstance(call, StepCall):
            new["fading_k"] = call.write(state, "fading_k", fading_k)
            new["fading_v"] = call.write(state, "fading_v", fading_v)
        if self.eidetic:
            boundary = self.config.eidetic_position == "boundary"
            eidetic_q = call.rows(call.behind(plain_q) if boundary else q)
            if isinstance(call, StepCall):
                score, extended = self.eidetic.score(f, state["predictor"])
                memories.append(self.eidetic.read_step(eidetic_q, call, state))
                new["context_score"] = call.write(state, "context_score", score)
                new["predictor"] = call.tail(extended, self.config.innovation_taps)
            elif isinstance(call, FullCall):
                size = (f.shape[0], self.config.innovation_taps, f.shape[2])
                tail = f.new_zeros(size, dtype=recurrent_dtype(f.dtype))
                score, _ = self.eidetic.score(f, tail)
                memories.append(self.eidetic.read_full(eidetic_q, plain_k if boundary else k, v, score, call))
                if self.training:
                    new["innovation_loss"] = self.eidetic.prediction_loss(f, tail)
        return self.o_proj(call.unrows(self.ops.memory_attention(memories, self.config.head_dim**-0.5))), new


def context(
    q: Tensor, k: Tensor, v: Tensor, call: Call, state: State, window: int | None
) -> tuple[list[Memory], State]:
    """In-context memory: the window's tokens before this chunk, and those of the chunk itself."""
    size = window or state["context_k"].shape[2]
    rows = call.rows(q)
    memories = [
        Memory(
            rows,
            call.past(k, state, "context_k", size),
            call.past(v, state, "context_v", size),
            call.visible(size, near=0, far=window),
        ),
        Memory(rows, call.rows(k), call.rows(v), call.visible(None, near=0, far=window)),
    ]
    if not isinstance(call, StepCall):
        return memories, {}
    return memories, {
        "context_k": call.write(state, "context_k", k),
        "context_v": call.write(state, "context_v", v),
    }
