"""Eidetic memory: the tokens that the fading memory could not predict, kept verbatim (spec/model
3.2-3.7).

Letters: B batch, T tokens, N rows of queries, H query heads, Hk kv heads, D head dim, d hidden
size, W window, C selection period, M slots, k predictor taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss
from transformers import initialization as init

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.norm import Rotation
from bmojo_neuron.ops import Ops
from bmojo_neuron.ops.innovation import EPS
from bmojo_neuron.ops.memory_attention import Memory, Visibility
from bmojo_neuron.state import State, StatePart, recurrent_dtype
from bmojo_neuron.window import Call, FullCall, StepCall, ring_position

SLOT_PARTS = ("eidetic_k", "eidetic_v", "eidetic_position", "eidetic_score")


class EideticMemory(nn.Module):
    """Scores tokens by innovation, selects the top M at boundaries, and offers them to memory
    attention.
    """

    def __init__(self, config: BMojoConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        # (k, d), nearest past first; named as a bias, so that weight decay spares it.
        self.predictor_bias = nn.Parameter(torch.empty(config.innovation_taps, config.hidden_size))
        self.innovation_log_bias = nn.Parameter(torch.empty(1))  # log of R_0
        if config.eidetic_score_bias:
            self.score_bias = nn.Parameter(torch.empty(config.num_attention_heads))  # beta

    def reset(self) -> None:
        """Tomorrow is like today; every head is biased by the score itself; R_0 is 1."""
        like_today = torch.zeros_like(self.predictor_bias)
        like_today[0] = 1.0
        init.copy_(self.predictor_bias, like_today)
        init.zeros_(self.innovation_log_bias)
        if self.config.eidetic_score_bias:
            init.ones_(self.score_bias)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """The predictor's past, the running innovation in units of R_0, the scores of the window's
        tokens, and the M slots.
        """
        c = self.config
        slots = (c.num_key_value_heads, c.eidetic_size, c.head_dim)
        return [
            StatePart("predictor", (c.innovation_taps, c.hidden_size), recurrent_dtype(dtype)),
            StatePart("innovation", (), recurrent_dtype(dtype), initial=1),
            StatePart("context_score", (c.window,), recurrent_dtype(dtype)),
            StatePart("eidetic_k", slots, dtype),
            StatePart("eidetic_v", slots, dtype),
            StatePart("eidetic_position", (c.eidetic_size,), torch.int32, initial=-1),
            StatePart("eidetic_score", (c.eidetic_size,), recurrent_dtype(dtype)),
        ]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, f: Tensor, call: Call, state: State
    ) -> tuple[Memory, State]:
        """Score this call's tokens and offer the slots that its queries may see.

        Args:
            q: (N, H, Q, D) in rows, turned for eidetic keys.
            k: (B, Hk, T, D) this call's keys as they are kept in slots.
            v: (B, Hk, T, D).
            f: (B, T, d) fading outputs.
            call: the geometry.
            state: this layer's parts.

        Returns:
            The memory, and the changed parts (full form in training: the innovation loss instead).
        """
        c = self.config
        if isinstance(call, StepCall):
            score, extended, means = self.score(f, state["predictor"], state["innovation"])
            ring = call.write(state["context_score"].unsqueeze(-1), score.unsqueeze(-1))
            tail = call.tail(extended, c.innovation_taps)
            running = call.tail(means.unsqueeze(-1), 1)[:, 0, 0]
            seen = Visibility(call.query_position, state["eidetic_position"], c.window)
            bias = self._bias(state["eidetic_score"])
            memory = Memory(q, state["eidetic_k"], state["eidetic_v"], seen, bias)
            new = {"context_score": ring.squeeze(-1), "predictor": tail, "innovation": running}
            return memory, new
        assert isinstance(call, FullCall)
        size = (f.shape[0], c.innovation_taps, f.shape[2])
        tail = f.new_zeros(size, dtype=recurrent_dtype(f.dtype))
        score, _, _ = self.score(f, tail, tail.new_ones(f.shape[0]))
        memory = self._full(q, k, v, score, call)
        if not self.training:
            return memory, {}
        return memory, {"innovation_loss": self.innovation_loss(f, tail, call.valid)}

    def score(self, f: Tensor, tail: Tensor, running: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, T) of f (B, T, d); f in float32 behind its tail (B, k+T, d); the running
        innovation before each token and after the last (B, T+1), in units of R_0, as it came (B,).
        """
        f = f if self.config.eidetic_score_bias else f.detach()
        score, _, extended, means = self._innovation(f, tail, running)
        return score, extended, means

    def _innovation(
        self, f: Tensor, tail: Tensor, running: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c = self.config
        weight = self.predictor_bias.to(tail.dtype)
        unit = self.innovation_log_bias.detach().to(tail.dtype).exp()
        return self.ops.innovation(
            f, weight, tail, running, unit, float(c.innovation_windows * c.window)
        )

    def innovation_loss(self, f: Tensor, tail: Tensor, valid: Tensor | None) -> Tensor:
        """What trains the predictor and R_0, and nothing else, (B,); 0 for a row without tokens.

        The mean over each row's valid tokens of the bounded relative error, and how far log R_0 is
        from the log of the mean innovation (as Huber's loss).
        """
        f = f.detach().to(tail.dtype)
        _, predicted, _, _ = self._innovation(f, tail, tail.new_ones(f.shape[0]))
        size = f.square().sum(-1) + predicted.detach().square().sum(-1)
        error = (f - predicted).square().sum(-1)  # (B, T)
        relative = error / (size + EPS)
        share = torch.ones_like(error) if valid is None else valid.to(error.dtype)
        share = share / share.sum(1, keepdim=True).clamp(min=1)
        mean = (error.detach() / f.shape[2] * share).sum(1)
        first = self.innovation_log_bias.to(tail.dtype).expand_as(mean)
        missed = huber_loss(first, (mean + EPS).log(), reduction="none")
        return (relative.where(share > 0, 0) * share).sum(1) + missed * (share.sum(1) > 0)

    def _full(self, q: Tensor, k: Tensor, v: Tensor, score: Tensor, call: FullCall) -> Memory:
        """Every selection period's own slots at once."""
        batch, kv_heads, length, _ = k.shape
        position = self.sets(score.detach(), call).flatten(0, 1)  # (B*P, M)
        first = torch.arange(batch, device=k.device).repeat_interleave(call.periods) * length
        index = (position.clamp(min=0) + first.unsqueeze(1)).flatten()  # into the (B*T) tokens

        def slots(x: Tensor) -> Tensor:  # (B, Hk, T, D) -> (B*P, Hk, M, D)
            x = x.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, index)
            return x.view(-1, position.shape[1], kv_heads, k.shape[3]).transpose(1, 2)

        seen = Visibility(call.query_position, position, self.config.window)
        kept = score.flatten().index_select(0, index).view(position.shape)
        return Memory(q, slots(k), slots(v), seen, self._bias(kept))

    def sets(self, score: Tensor, call: FullCall) -> Tensor:
        """Positions (B, P, M) int32 that each selection period holds, -1 = empty; score: (B, T)."""
        c = self.config
        batch = score.shape[0]
        kept = score.new_full((batch, c.eidetic_size), -1, dtype=torch.int32)
        kept_score = score.new_zeros(batch, c.eidetic_size)
        out = []
        for period in range(call.periods):
            boundary = period * call.period
            low, high = boundary - c.window, boundary - c.window + call.period
            if high > 0:
                fresh = torch.arange(
                    max(low, 0), high, dtype=torch.int32, device=score.device
                ).expand(batch, -1)
                position = torch.cat([kept, fresh], dim=1)
                scores = torch.cat([kept_score, score[:, max(low, 0) : high]], dim=1)
                at = torch.full((batch,), boundary, dtype=torch.int32, device=score.device)
                index, _ = self.ops.selection(scores, position, at, c.eidetic_size, c.eidetic_decay)
                kept, kept_score = position.gather(1, index), scores.gather(1, index)
            out.append(kept)
        return torch.stack(out, dim=1)

    def select(
        self, state: State, n: Tensor, at_boundary: Tensor, turn_back: Rotation | None
    ) -> tuple[State, State]:
        """Merge the C oldest tokens of the window into the slots, for the rows that stand on a
        boundary.

        Args:
            state: this layer's parts (local names).
            n: (B,) int32 tokens so far; the boundary of the rows that stand on one.
            at_boundary: (B,) bool.
            turn_back: un-rotates the C candidates' keys ("boundary" positions), or None
                ("absolute").

        Returns:
            The changed parts, and what fell out: the same parts with C entries, position -1 where
                nothing did.
        """
        c = self.config
        slot = torch.arange(c.selection_period, dtype=torch.int32, device=n.device)
        slot = (
            (n.unsqueeze(1) + slot).remainder(c.window).long()
        )  # (B, C): where b-W .. b-W+C-1 stand in the ring
        position = ring_position(n, c.window).gather(1, slot).clamp(min=-1)
        wide = slot[:, None, :, None].expand(-1, c.num_key_value_heads, -1, c.head_dim)
        k = state["context_k"].gather(2, wide)
        fresh = {
            "eidetic_k": k if turn_back is None else turn_back(k),
            "eidetic_v": state["context_v"].gather(2, wide),
            "eidetic_position": position,
            "eidetic_score": state["context_score"].gather(1, slot),
        }
        joined = {
            name: torch.cat([state[name], fresh[name]], dim=-2 if fresh[name].dim() == 4 else -1)
            for name in fresh
        }
        kept, dropped = self.ops.selection(
            joined["eidetic_score"], joined["eidetic_position"], n, c.eidetic_size, c.eidetic_decay
        )

        def take(x: Tensor, index: Tensor) -> Tensor:
            if x.dim() == 2:
                return x.gather(1, index)
            return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        new, evicted = {}, {}
        for name, entries in joined.items():
            mask = at_boundary.view(-1, *[1] * (entries.dim() - 1))
            new[name] = torch.where(mask, take(entries, kept), state[name])
            evicted[name] = take(entries, dropped)
        evicted["eidetic_position"] = evicted["eidetic_position"].where(
            at_boundary.unsqueeze(1), -1
        )
        return new, evicted

    def _bias(self, score: Tensor) -> Tensor | None:
        if not self.config.eidetic_score_bias:
            return None
        return self.score_bias.unsqueeze(1) * score.unsqueeze(1)  # (N, H, M)
