"""B'MOJO: one block, many architectures. Its layers differ only in the memories that their softmax
reads.

    h += layer(RMSNorm(h))      attention | sliding_attention | mamba2 | bmojo_f | bmojo
    h += SwiGLU(RMSNorm(h))

Three programs run it (spec/model section 6): `step` (T tokens after a state), `select` (the merge
into eidetic memory at a selection boundary) and the full form for training. `feed` is the host's
loop over the first two.

Letters: B batch, T tokens, d hidden size, V vocabulary, C selection period.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from bmojo_neuron.arguments import check_arguments, check_positions
from bmojo_neuron.cache import BMojoCache
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.eidetic import SLOT_PARTS, EideticMemory
from bmojo_neuron.generation import BMojoGenerationMixin
from bmojo_neuron.layers import Attention, BMojo
from bmojo_neuron.loss import IGNORED, next_tokens, row_shares
from bmojo_neuron.mixers import Mamba2
from bmojo_neuron.norm import RMSNorm, Rotary
from bmojo_neuron.ops import Ops, load_ops
from bmojo_neuron.padding import compact, restore
from bmojo_neuron.planning import FREE_CHUNK, plan
from bmojo_neuron.state import State, StatePart, grow, new_state
from bmojo_neuron.window import Call, FullCall, StepCall

MOST_TOKENS = torch.iinfo(torch.int32).max  # of a session


def default_model_path() -> Path:
    """Directory of the embedded default model."""
    return Path(__file__).parent / "default_model"


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: BMojoConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, inner, bias=False)
        self.up_proj = nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return y


def build_layer(kind: str, config: BMojoConfig, ops: Ops) -> Attention | BMojo | Mamba2:
    """The sequence layer of one layer type."""
    match kind:
        case "attention":
            return Attention(config, ops, window=None)
        case "sliding_attention":
            return Attention(config, ops, window=config.window)
        case "mamba2":
            return Mamba2(config, ops)
        case "bmojo_f":
            return BMojo(config, ops, eidetic=False)
        case "bmojo":
            return BMojo(config, ops, eidetic=config.eidetic_size > 0)
    raise AssertionError(kind)  # the configuration has checked it


class Block(nn.Module):
    """A sequence layer and an MLP, each behind a norm and around a residual."""

    def __init__(self, config: BMojoConfig, ops: Ops, kind: str) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layer = build_layer(kind, config, ops)
        self.mlp = SwiGLU(config) if config.intermediate_size else None
        self.mlp_norm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) if config.intermediate_size else None
        )

    def forward(self, h: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        y, new = self.layer(self.input_norm(h), call, state)
        h = h + y
        if self.mlp is not None and self.mlp_norm is not None:
            h = h + self.mlp(self.mlp_norm(h))
        return h, new


def run_block(block: Block, h: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
    """One block of any program; `bmojo_neuron.compiled` puts its own in this place."""
    y: tuple[Tensor, State] = block(h, call, state)
    return y


class BMojoForCausalLM(PreTrainedModel, BMojoGenerationMixin):
    """The language model: embedding, blocks, norm, head; with a session's state as its cache.

    Args:
        config: the architecture.
        backend: whose kernels run the ops: "torch" (any device). Never stored in the configuration.
    """

    config_class = BMojoConfig
    config: BMojoConfig
    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012 (transformers reads it so)
    _no_split_modules = ["Block"]  # noqa: RUF012
    _is_stateful = True  # transformers: this cache cannot be rewound

    def __init__(self, config: BMojoConfig, backend: str = "torch") -> None:
        super().__init__(config)
        self.ops = load_ops(backend)
        self.run_block = run_block
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(Block(config, self.ops, kind) for kind in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._part_names = [
            [part.name for part in block.layer.parts(torch.float32)] for block in self._blocks()
        ]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, Mamba2 | EideticMemory):
            module.reset()

    def step(
        self,
        tokens: Tensor,
        n_valid: Tensor | None,
        state: State,
        *,
        all_logits: bool = False,
        donate: bool = False,
    ) -> tuple[Tensor, State]:
        """Feed up to T tokens per row. Pure; never crosses a selection boundary (`plan` sees to
        that).

        Args:
            tokens: (B, T) int32; row b's tokens from n_valid[b] on are padding and change nothing.
            n_valid: (B,) int32, 0 <= n_valid <= T <= `self.chunk`; None: all T of every row.
            state: as from `new_state` or an earlier step.
            all_logits: return logits of all T positions rather than of the last valid one.
            donate: the old state is given up, so its memory may hold the new one.

        Returns:
            logits (B, V) or (B, T, V), and the new state.
        """
        call = StepCall(state["n"], n_valid, tokens.shape[1], donate)
        h, parts = self._run(tokens, call, state)
        taken = tokens.shape[1] if n_valid is None else n_valid
        new = {**state, **parts, "n": state["n"] + taken}
        if not all_logits and (n_valid is None or tokens.shape[1] == 1):
            h = h[:, -1]
        elif n_valid is not None and not all_logits:
            last = (n_valid - 1).clamp(min=0).long().view(-1, 1, 1).expand(-1, 1, h.shape[2])
            h = h.gather(1, last).squeeze(1)
        return self.lm_head(self.norm(h)), new

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

    def full(self, tokens: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The full form: a whole sequence from its start, all selection periods at once,
        differentiable.

        Args:
            tokens: (B, T), right-padded where `lengths` says so.
            lengths: valid tokens per row; None: all T.

        Returns:
            h (B, T, d), normed, ready for the head; and, in training mode, each row's innovation
            loss (B,) (else 0).
        """
        batch, length = tokens.shape
        call = FullCall(batch, length, self.config.selection_period, tokens.device, lengths)
        h, reports = self._run(tokens, call, {})
        losses = [part for name, part in reports.items() if name.endswith("innovation_loss")]
        return self.norm(h), torch.stack(losses).mean(0) if losses else h.new_zeros(len(h))

    def _run(self, tokens: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """All blocks; returns h (B, T, d) before the last norm, and the parts of the new state."""
        h = self.embed_tokens(tokens)
        call.here = self.rotary(call.position, h.dtype)
        behind = torch.full((1, 1), 2 * self.config.window, dtype=torch.int32, device=h.device)
        call.behind = self.rotary(behind, h.dtype)
        new: State = {}
        for i, block in enumerate(self._blocks()):
            prefix = f"layers.{i}."
            local = {name: state[prefix + name] for name in (self._part_names[i] if state else ())}
            h, parts = self.run_block(block, h, call, local)
            new |= {prefix + name: part for name, part in parts.items()}
        return h, new

    @property
    def chunk(self) -> int:
        """Longest step: windowed layers take at most a window (B'MOJO: a selection period) at a
        time.
        """
        if self.config.has_eidetic:
            return min(self.config.selection_period, FREE_CHUNK)
        windowed = {"sliding_attention", "bmojo_f", "bmojo"} & set(self.config.layer_types)
        return min(self.config.window, FREE_CHUNK) if windowed else FREE_CHUNK

    def state_parts(self) -> list[StatePart]:
        """The registry: every tensor that a session keeps."""
        parts = [StatePart("n", (), torch.int32)]
        for i, block in enumerate(self._blocks()):
            for part in block.layer.parts(self.dtype):
                name = f"layers.{i}.{part.name}"
                parts.append(StatePart(name, part.shape, part.dtype, part.initial, part.grows))
        return parts

    def new_state(self, batch_size: int = 1, capacity: int = 0) -> State:
        """The state before any token; `capacity` preallocates the keys and values of full attention
        (tokens).
        """
        return new_state(self.state_parts(), batch_size, capacity, self.device)

    def feed(
        self,
        ids: Tensor,
        state: State,
        *,
        lengths: Sequence[int] | None = None,
        all_logits: bool = False,
        donate: bool = False,
    ) -> tuple[Tensor, State]:
        """Feed any number of tokens: plan, select and step until all are consumed.

        Args:
            ids: (B, T) int32 or int64, T >= 1, right-padded where `lengths` says so.
            state: B rows; left as it was unless `donate`.
            lengths: valid tokens per row, each 0..T; None: all T.
            all_logits: return logits of every position (zeros at padding) rather than of the last
                valid one.
            donate: the old state is given up, so its memory may hold the new one.

        Returns:
            logits (B, V) (zeros for a row of length 0) or (B, T, V), and the new state.

        Raises:
            ValueError: shapes do not fit each other, or a row would hold more than 2^31 - 1 tokens.
        """
        batch, width = ids.shape if ids.dim() == 2 else (0, 0)
        if batch != state["n"].shape[0] or width < 1:
            raise ValueError(
                f"ids: expected ({state['n'].shape[0]}, T >= 1) token ids, got {tuple(ids.shape)}"
            )
        if ids.dtype != torch.int32:
            ids = ids.to(torch.int32)
        left = [width] * batch if lengths is None else list(lengths)
        if len(left) != batch or not all(0 <= length <= width for length in left):
            raise ValueError(f"lengths: expected {batch} values between 0 and {width}, got {left}")
        seen = state["n"].tolist()
        needed = max(s + length for s, length in zip(seen, left, strict=True))
        if needed > MOST_TOKENS:
            raise ValueError(
                f"ids: expected at most {MOST_TOKENS} tokens in a row, as positions are int32, "
                f"got {needed}; go on in a new state"
            )
        if "attention" in self.config.layer_types:  # the only parts that grow
            state = grow(state, self.state_parts(), needed)
        shape = (batch, width) if all_logits else (batch,)
        logits = torch.zeros(*shape, self.config.vocab_size, dtype=self.dtype, device=ids.device)
        period = self.config.selection_period if self.config.has_eidetic else None
        done = [0] * batch
        for piece in plan(seen, left, period, self.chunk):
            if any(piece.at_boundary):
                state, _ = self.select(state, torch.tensor(piece.at_boundary, device=ids.device))
            tokens, n_valid = _cut(ids, done, piece.take)
            out, state = self.step(tokens, n_valid, state, all_logits=all_logits, donate=donate)
            for b, take in enumerate(piece.take):
                if take and all_logits:
                    logits[b, done[b] : done[b] + take] = out[b, :take]
                elif take:
                    logits[b] = out[b]
            done = [d + take for d, take in zip(done, piece.take, strict=True)]
        return logits, state

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: BMojoCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a batch, as every causal LM of transformers gives them.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) or, with a cache, (B, seen + T); 0 marks padding, anywhere in a
                row: a row's result is that of its valid tokens alone. Logits at padding are
                those of the valid token before it in this call; without one they mean nothing.
            labels: (B, T) token ids, -100 = ignored, as all at padding are; adds `loss` (in
                training with the innovation loss; both are divided by `num_items_in_batch` where
                that is given).
            past_key_values: continue after this state; the cache owns it, and holds the new one
                afterwards.
            use_cache: return the state; default: the configuration's word, but not in training or
                with labels.
            logits_to_keep: only the last so many positions, or these; 0 = all.
            position_ids: accepted where it says what the mask says; positions follow from the
                tokens themselves.

        Raises:
            ValueError: an argument has the wrong shape or says something that cannot be honoured.
        """
        check_arguments(input_ids, attention_mask, labels, past_key_values, logits_to_keep, kwargs)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        cached = use_cache or past_key_values is not None
        mask = attention_mask
        if mask is not None:
            mask = mask[:, -input_ids.shape[1] :]
            mask = None if bool(mask.all()) else mask
        if position_ids is not None:
            before = None if past_key_values is None else past_key_values.state
            check_positions(position_ids, mask, 0 if before is None else before["n"].unsqueeze(1))
        tokens, lengths, order = compact(input_ids, mask)

        innovation = torch.zeros(len(input_ids), device=input_ids.device)
        if cached:
            cache = past_key_values if past_key_values is not None else BMojoCache()
            state = self.new_state(input_ids.shape[0]) if cache.state is None else cache.state
            only_last = isinstance(logits_to_keep, int) and logits_to_keep == 1 and labels is None
            logits, cache.state = self.feed(
                tokens,
                state,
                lengths=lengths,
                all_logits=not only_last,
                donate=not torch.is_grad_enabled(),
            )
            cache.seen += input_ids.shape[1]
            logits = (
                logits.unsqueeze(1) if only_last else _keep(restore(logits, mask), logits_to_keep)
            )
        else:
            cache = None
            h, innovation = self.full(tokens, lengths)
            logits = self.lm_head(_keep(restore(h, mask), logits_to_keep))

        loss = None
        if labels is not None:
            ignored = kwargs.get("ignore_index", IGNORED)
            targets = kwargs.pop("shift_labels", None)
            if targets is None:
                targets = next_tokens(labels, ignored, mask, order)
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, shift_labels=targets, **kwargs
            )
            shares = row_shares(targets, ignored, kwargs.get("num_items_in_batch"))
            loss = loss + self.config.innovation_loss_weight * (shares * innovation).sum()
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache if use_cache else None
        )

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.layers]

    def _eidetic_layers(self) -> list[tuple[int, EideticMemory]]:
        layers = [(i, block.layer) for i, block in enumerate(self._blocks())]
        return [
            (i, layer.eidetic)
            for i, layer in layers
            if isinstance(layer, BMojo) and layer.eidetic is not None
        ]


def _cut(ids: Tensor, done: list[int], take: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Each row's next tokens (B, T), and how many of them are valid (None = all)."""
    if min(done) == max(done) and min(take) == max(take):
        return ids[:, done[0] : done[0] + take[0]], None
    column = torch.arange(max(take), device=ids.device)
    column = column + torch.tensor(done, device=ids.device).unsqueeze(1)
    tokens = ids.gather(1, column.clamp(max=ids.shape[1] - 1))
    return tokens, torch.tensor(take, dtype=torch.int32, device=ids.device)


def _keep(x: Tensor, positions: int | Tensor) -> Tensor:
    if isinstance(positions, int):
        return x[:, -positions:] if positions else x
    return x[:, positions]
