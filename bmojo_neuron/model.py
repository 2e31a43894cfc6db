"""B'MOJO: one block, many architectures. Its layers differ only in the memories that their softmax
reads.

    h += layer(RMSNorm(h))      attention | sliding_attention | mamba | mamba2 | bmojo_f | bmojo
    h += SwiGLU(RMSNorm(h))

Three programs run it (spec/model section 6): `step` (T tokens after a state), `select` (the merge
into eidetic memory at a selection boundary) and the full form for training. `feed` is the host's
loop over the first two. The heads are in `bmojo_neuron.causal_lm`.

Letters: B batch, T tokens, d hidden size, L blocks, C selection period.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.eidetic import SLOT_PARTS, EideticMemory
from bmojo_neuron.feeding import feed
from bmojo_neuron.huggingface.arguments import (
    check_inputs,
    check_positions,
    is_traced,
    refuse,
    valid_tokens,
    wants_hidden_states,
)
from bmojo_neuron.huggingface.cache import CACHE_FIELD, BMojoCache, one_cache
from bmojo_neuron.huggingface.padding import compact, restore
from bmojo_neuron.huggingface.pretrained import BMojoPreTrainedModel
from bmojo_neuron.layers import Attention, BMojo
from bmojo_neuron.mixers import MIXERS, Mixer
from bmojo_neuron.norm import RMSNorm, Rotary
from bmojo_neuron.ops import Ops, load_ops
from bmojo_neuron.planning import FREE_CHUNK
from bmojo_neuron.state import State, StatePart, new_state
from bmojo_neuron.window import Call, FullCall, StepCall


def default_model_path() -> Path:
    """Directory of the embedded default model."""
    return Path(__file__).parent / "default_model"


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: BMojoConfig) -> None:
        super().__init__()
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, inner, bias=bias)
        self.up_proj = nn.Linear(d, inner, bias=bias)
        self.down_proj = nn.Linear(inner, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return y


def build_layer(kind: str, config: BMojoConfig, ops: Ops) -> Attention | BMojo | Mixer:
    """The sequence layer of one layer type."""
    match kind:
        case "attention":
            return Attention(config, ops, window=None)
        case "sliding_attention":
            return Attention(config, ops, window=config.sliding_window)
        case "bmojo_f":
            return BMojo(config, ops, eidetic=False)
        case "bmojo":
            return BMojo(config, ops, eidetic=config.eidetic_size > 0)
    return MIXERS[kind](config, ops)


class Block(GradientCheckpointingLayer):
    """A sequence layer and an MLP, each behind a norm and around a residual."""

    def __init__(self, config: BMojoConfig, ops: Ops, kind: str) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layer = build_layer(kind, config, ops)
        self.mlp = SwiGLU(config) if config.intermediate_size else None
        self.mlp_norm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) if config.intermediate_size else None
        )

    def forward(self, h: Tensor, call: Call, state: State) -> tuple[Tensor, State, Tensor | None]:
        """h (B, T, d) -> the next h, the new state and, in training, the innovation loss (B,)."""
        y, new = self.layer(self.input_norm(h), call, state)
        h = h + y
        if self.mlp is not None and self.mlp_norm is not None:
            h = h + self.mlp(self.mlp_norm(h))
        return h, new, new.pop("innovation_loss", None)


def run_block(
    block: Block, h: Tensor, call: Call, state: State
) -> tuple[Tensor, State, Tensor | None]:
    """One block of any program; `bmojo_neuron.compiled` puts its own in this place."""
    y: tuple[Tensor, State, Tensor | None] = block(h, call, state)
    return y


@dataclass
class BMojoOutput(BaseModelOutputWithPast):
    """As every base model of transformers gives it, and what training needs besides.

    Attributes:
        innovation: each row's innovation loss (B,); None where it was not asked for.
    """

    innovation: Tensor | None = None


class BMojoModel(BMojoPreTrainedModel):
    """The model without a head: embedding, blocks, norm; with a session's state as its cache.

    Args:
        config: the architecture.
        backend: whose kernels run the ops: "torch" (any device). Never stored in the configuration.
    """

    def __init__(self, config: BMojoConfig, backend: str = "torch") -> None:
        super().__init__(config)
        config.check()  # it may have been edited since it was made
        self.ops = load_ops(backend)
        self.run_block = run_block
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(Block(config, self.ops, kind) for kind in config.block_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._part_names = [
            [part.name for part in block.layer.parts(torch.float32)] for block in self._blocks()
        ]
        self.post_init()

    def step(
        self,
        tokens: Tensor,
        n_valid: Tensor | None,
        state: State,
        *,
        all_tokens: bool = False,
        all_layers: bool = False,
        donate: bool = False,
    ) -> tuple[Tensor, State]:
        """Feed up to T tokens per row. Pure; never crosses a selection boundary (`plan` sees to
        that).

        Args:
            tokens: (B, T) int32 ids, or (B, T, d) embeddings in their place; row b's tokens from
                n_valid[b] on are padding and change nothing.
            n_valid: (B,) int32, 0 <= n_valid <= T <= `self.chunk`; None: all T of every row.
            state: as from `new_state` or an earlier step.
            all_tokens: return the hidden states of all T tokens, not that of the last valid one.
            all_layers: return those of the embedding and of every block too.
            donate: the old state is given up, so its memory may hold the new one.

        Returns:
            hidden states (B, d) or (B, T, d), with `all_layers` (..., L+1, d), the last one normed;
            and the new state.
        """
        length = tokens.shape[1]
        call = StepCall(state["n"], n_valid, length, donate)
        trail, parts, _ = self._run(tokens, call, state, all_layers)
        h = torch.stack(trail, dim=2) if all_layers else trail[-1]
        new = {**state, **parts, "n": state["n"] + (length if n_valid is None else n_valid)}
        if all_tokens:
            return h, new
        if n_valid is None or length == 1:
            return h[:, -1], new
        last = (n_valid - 1).clamp(min=0).long()
        return h[torch.arange(len(h), device=h.device), last], new

    def select(self, state: State, at_boundary: Tensor) -> tuple[State, State]:
        """Merge the tokens about to leave the window into eidetic memory, for rows that stand on a
        boundary.

        Args:
            state: any state; rows that do not stand on a boundary keep theirs.
            at_boundary: (B,) bool: n is a multiple of C.

        Returns:
            The new state, and per B'MOJO layer the C entries that fell out of memory (position -1:
            none).
        """
        new: State = dict(state)
        evicted: State = {}
        c = self.config
        candidates = state["n"].unsqueeze(1) - c.window
        candidates = candidates + torch.arange(
            c.selection_period, dtype=torch.int32, device=candidates.device
        )
        back = None
        if c.eidetic_position == "boundary":
            back = self.rotary(candidates, self.dtype).inverse()
        for i, memory in self._eidetic_layers():
            prefix = f"layers.{i}."
            local = {
                name: state[prefix + name]
                for name in (*SLOT_PARTS, "context_k", "context_v", "context_score")
            }
            kept, dropped = memory.select(local, state["n"], at_boundary, back)
            new |= {prefix + name: part for name, part in kept.items()}
            evicted |= {prefix + name: part for name, part in dropped.items()}
        return new, evicted

    def full(
        self,
        tokens: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        all_layers: bool = False,
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The full form: a whole sequence from its start, all selection periods at once,
        differentiable.

        Args:
            tokens: (B, T) ids or (B, T, d) embeddings, right-padded where `lengths` says so.
            lengths: valid tokens per row; None: all T.
            all_layers: return the hidden states of the embedding and of every block too.

        Returns:
            hidden states (B, T, d) each, the last one normed, ready for a head; and, in training
            mode, each row's innovation loss (B,) where a layer has one, else None.
        """
        batch, length = tokens.shape[:2]
        call = FullCall(batch, length, self.config.selection_period, tokens.device, lengths)
        trail, _, losses = self._run(tokens, call, {}, all_layers)
        return trail, torch.stack(losses).mean(0) if losses else None

    def _run(
        self, tokens: Tensor, call: Call, state: State, all_layers: bool
    ) -> tuple[tuple[Tensor, ...], State, list[Tensor]]:
        """All blocks: hidden states as `full` returns them, parts of the new state, losses."""
        h = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        if call.valid is not None:  # whatever stands at padding, NaN too
            h = h.where(call.valid.unsqueeze(-1), 0)
        call.here = self.rotary(call.position, h.dtype)
        behind = torch.full((1, 1), 2 * self.config.window, dtype=torch.int32, device=h.device)
        call.behind = self.rotary(behind, h.dtype)
        new: State = {}
        trail, losses = [h], []
        for i, block in enumerate(self._blocks()):
            prefix = f"layers.{i}."
            local = {name: state[prefix + name] for name in (self._part_names[i] if state else ())}
            h, parts, loss = self.run_block(block, h, call, local)
            new |= {prefix + name: part for name, part in parts.items()}
            losses += [] if loss is None else [loss]
            trail = [*(trail if all_layers else ()), h]
        trail[-1] = self.norm(h)
        return tuple(trail), new, losses

    @property
    def chunk(self) -> int:
        """Longest step: windowed layers take at most a window (with eidetic memory: a selection
        period) at a time.
        """
        c, kinds = self.config, set(self.config.block_types)
        longest = [FREE_CHUNK]
        longest += [c.sliding_window] if "sliding_attention" in kinds else []
        longest += [c.window] if kinds & {"bmojo_f", "bmojo"} else []
        longest += [c.selection_period] if c.has_eidetic else []
        return min(longest)

    def state_parts(self) -> list[StatePart]:
        """The registry: every tensor that a session keeps."""
        parts = [StatePart("n", (), torch.int32)]
        for i, block in enumerate(self._blocks()):
            for part in block.layer.parts(self.dtype):
                name = f"layers.{i}.{part.name}"
                parts.append(StatePart(name, part.shape, part.dtype, part.initial, part.grows))
        return parts

    def new_state(
        self, batch_size: int = 1, capacity: int = 0, device: torch.device | None = None
    ) -> State:
        """The state before any token.

        Args:
            batch_size: B.
            capacity: tokens for which full attention preallocates keys and values.
            device: None: the model's; of an offloaded model, say where its inputs are.
        """
        return new_state(self.state_parts(), batch_size, capacity, device or self.device)

    def feed(
        self,
        ids: Tensor,
        state: State,
        *,
        lengths: Sequence[int] | None = None,
        all_tokens: bool = False,
        all_layers: bool = False,
        donate: bool = False,
    ) -> tuple[Tensor, State]:
        """As `BMojoForCausalLM.feed`, with hidden states (as `step` gives them) for logits; `ids`
        may be embeddings (B, T, d).
        """
        step = functools.partial(self.step, all_tokens=all_tokens, all_layers=all_layers)
        return feed(self, step, ids, state, lengths, all_tokens, donate)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BMojoCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: BMojoCache | None = None,
        **kwargs: Any,
    ) -> BMojoOutput:
        """Hidden states of a batch, as every base model of transformers gives them.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) or, with a cache, (B, seen + T), of 0 (padding, anywhere in a
                row) and 1: a row's result is that of its valid tokens alone. What stands at padding
                is that of the valid token before it in this call; without one it means nothing.
            position_ids: accepted where it says what the mask says; positions follow from the
                tokens themselves.
            past_key_values: the older name of `cache`.
            inputs_embeds: (B, T, d) in place of input_ids.
            use_cache: return the state; default: the configuration's word, but not in training nor
                where the model is exported or traced.
            output_hidden_states: return those of the embedding and of every block too.
            cache: continue after this state; the cache owns it, and holds the new one afterwards.

        Raises:
            ValueError: an argument has the wrong shape or says something that cannot be honoured.
        """
        tokens = check_inputs(input_ids, inputs_embeds)
        cache = one_cache(cache, past_key_values)
        seen = 0 if cache is None else cache.seen
        refuse(kwargs, self.config, range(seen, seen + tokens.shape[1]))
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not is_traced()
        every = wants_hidden_states(output_hidden_states, self.config)
        valid = valid_tokens(attention_mask, tokens, cache)
        if position_ids is not None:
            before = None if cache is None else cache.state
            counted = 0 if before is None else before["n"].unsqueeze(1)
            check_positions(position_ids, valid, counted, tokens.shape[:2])

        tokens, lengths = compact(tokens, valid)
        innovation = None
        if use_cache or cache is not None:
            cache = BMojoCache() if cache is None else cache
            state = cache.state
            if state is None:
                state = self.new_state(len(tokens), device=tokens.device)
            elif state.keys() != {part.name for part in self.state_parts()}:
                raise ValueError(
                    f"{CACHE_FIELD}: expected a cache of a model like this one, got one with other "
                    "layers; start anew without it"
                )
            stacked, cache.state = self.feed(
                tokens,
                state,
                lengths=None if lengths is None else lengths.tolist(),
                all_tokens=True,
                all_layers=every,
                donate=not torch.is_grad_enabled(),
            )
            cache.seen += tokens.shape[1]
            trail = stacked.unbind(2) if every else (stacked,)
        else:
            trail, innovation = self.full(tokens, lengths, every)
        trail = tuple(restore(h, valid) for h in trail)
        output = BMojoOutput(
            last_hidden_state=trail[-1],
            hidden_states=trail if every else None,
            innovation=innovation,
        )
        output[CACHE_FIELD] = cache if use_cache else None
        return output

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.layers]

    def _eidetic_layers(self) -> list[tuple[int, EideticMemory]]:
        layers = [(i, block.layer) for i, block in enumerate(self._blocks())]
        return [
            (i, layer.eidetic)
            for i, layer in layers
            if isinstance(layer, BMojo) and layer.eidetic is not None
        ]
