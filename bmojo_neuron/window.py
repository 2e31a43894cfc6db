"""Where the keys of a window come from: a ring in the state (step form), or the sequence itself
(full form).

Both forms put the same question to memory attention: some rows of queries, the keys before them,
the keys among them. The step form has one row per session, its past in rings. The full form
(training) has one row per selection period, all at once, its past cut out of the sequence.
Worked example, W = C = 4, tokens 0..11: the full form makes three rows, queries 0-3, 4-7, 8-11;
the past of the last is keys 4-7 (W = 4) and fading keys 0-7 (2W = 8).

Letters: B batch, T tokens of this call, N rows of queries (B, or B * periods), Q queries per row,
H query heads, Hk kv heads, D head dim, R size of a past, W window, n tokens before this call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bmojo_neuron.norm import Rotation
from bmojo_neuron.ops.memory_attention import Memory, Visibility
from bmojo_neuron.state import State


def ring_position(n: Tensor, size: int) -> Tensor:
    """Position of the token in each slot of a ring after n tokens, negative = empty: (B, size)
    int32.

    The token at position p stands in slot p mod size: slot r holds the largest p < n, p = r mod
    size.
    """
    slot = torch.arange(size, dtype=torch.int32, device=n.device)
    last = (n - 1).unsqueeze(1)
    return last - (last - slot).remainder(size)


class Call(ABC):
    """The geometry of one call: what each layer needs to know about positions.

    Attributes:
        position: (B, T) int32 absolute position of each token.
        valid: (B, T) bool, or None when every token is valid.
        query_position: (N, Q) int32.
        here: rotary rotation of each token at its own position, for (B, H, T, D).
        behind: rotary rotation by 2W, where eidetic keys are seen in "boundary" mode.
    """

    position: Tensor
    valid: Tensor | None
    query_position: Tensor
    here: Rotation
    behind: Rotation

    def __init__(self) -> None:
        self._visible: dict[tuple[int | None, int, int | None], Visibility] = {}

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (N, H, Q, D)."""

    @abstractmethod
    def unrows(self, x: Tensor) -> Tensor:
        """(N, H, Q, D) -> (B, T, H * D)."""

    @abstractmethod
    def context(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, window: int | None
    ) -> tuple[list[Memory], State]:
        """In-context memory: tokens at a distance below `window` (None: all), and the new rings.

        q (N, H, Q, D) in rows; k, v (B, Hk, T, D) of this call's tokens.
        """

    @abstractmethod
    def fading(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, window: int
    ) -> tuple[list[Memory], State]:
        """Fading memory: outputs of the mixer at distances W .. 2W-1, and the new rings."""

    @abstractmethod
    def past_position(self, size: int) -> Tensor:
        """Positions of the keys of a past of `size`, (N, R) int32; negative = no such token."""

    def visible(self, past: int | None, near: int, far: int | None) -> Visibility:
        """What shows itself of a past of that size, or (None) of the tokens among the queries.

        One object per call, so one mask, however many layers ask.
        """
        kind = (past, near, far)
        if kind not in self._visible:
            position = self.query_position if past is None else self.past_position(past)
            self._visible[kind] = Visibility(self.query_position, position, near, far)
        return self._visible[kind]


class StepCall(Call):
    """T tokens after a state; rows are sessions, pasts are the state's rings.

    A single token is written into its rings before they are read: the slot it takes held the token
    that has just left every window. Several tokens are read beside the rings, then written.

    Args:
        n: (B,) int32 tokens before this call.
        n_valid: (B,) int32 valid tokens of this call, or None when all T are.
        length: T.
        donate: a single token may be written into the old rings' own memory.
    """

    def __init__(self, n: Tensor, n_valid: Tensor | None, length: int, donate: bool) -> None:
        super().__init__()
        offset = torch.arange(length, dtype=torch.int32, device=n.device)
        self.n, self.n_valid, self.single = n, n_valid, length == 1
        self.in_place = donate and self.single
        self.position = self.query_position = n.unsqueeze(1) + offset
        self.valid = None if n_valid is None else offset < n_valid.unsqueeze(1)
        self._slots: dict[int, Tensor] = {}

    def rows(self, x: Tensor) -> Tensor:
        return x

    def unrows(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def past_position(self, size: int) -> Tensor:
        return ring_position(self.n + 1 if self.single else self.n, size)

    def context(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, window: int | None
    ) -> tuple[list[Memory], State]:
        size = state["context_k"].shape[2]
        new, keys, values = self._rings("context", k, v, state)
        memories = [Memory(q, keys, values, self.visible(size, 0, window))]
        if not self.single:
            memories.append(Memory(q, k, v, self.visible(None, 0, window)))
        return memories, new

    def fading(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, window: int
    ) -> tuple[list[Memory], State]:
        # This call's own tokens are never seen here: a step is at most W long.
        new, keys, values = self._rings("fading", k, v, state)
        return [Memory(q, keys, values, self.visible(2 * window, window, 2 * window))], new

    def _rings(self, name: str, k: Tensor, v: Tensor, state: State) -> tuple[State, Tensor, Tensor]:
        """The written rings, and the keys and values to read."""
        names = (f"{name}_k", f"{name}_v")
        new = {part: self.write(state[part], x) for part, x in zip(names, (k, v), strict=True)}
        read = new if self.single else state
        return new, read[names[0]], read[names[1]]

    def write(self, ring: Tensor, new: Tensor) -> Tensor:
        """Put this call's valid tokens (B, ..., T, D) into a ring (B, ..., R, D); T <= R."""
        size = ring.shape[-2]
        if size not in self._slots:
            self._slots[size] = self.position.remainder(size).long()  # (B, T)
        extra = [1] * (ring.dim() - 3)  # the axis of heads, where there is one
        slot = self._slots[size].view(ring.shape[0], *extra, -1, 1).expand_as(new)
        new = new.to(ring.dtype)
        if self.valid is not None:
            valid = self.valid.view(ring.shape[0], *extra, -1, 1)
            new = torch.where(valid, new, ring.gather(-2, slot))
        if not self.in_place:
            return ring.scatter(-2, slot, new)
        # Not scatter_: a compiler would copy the whole ring for it.
        row = torch.arange(ring.shape[0], device=ring.device).unsqueeze(1)
        if extra:
            ring[row, :, self._slots[size]] = new.transpose(1, 2)  # (B, T, Hk, D)
        else:
            ring[row, self._slots[size]] = new
        return ring

    def tail(self, extended: Tensor, size: int) -> Tensor:
        """The `size` rows of (B, size+T, E) that end at each session's last valid token."""
        if self.n_valid is None:
            tail = extended[:, extended.shape[1] - size :]
            return tail.clone(memory_format=torch.contiguous_format)
        index = torch.arange(size, dtype=torch.int32, device=extended.device)
        index = (self.n_valid.unsqueeze(1) + index).long()
        return extended.gather(1, index.unsqueeze(2).expand(-1, -1, extended.shape[2]))


class FullCall(Call):
    """A whole sequence from its start; rows are selection periods, pasts are cut out of it.

    Args:
        batch_size: B.
        length: T.
        period: C.
        device: where the tokens are.
        lengths: valid tokens per row, the first ones; None when all T are.
    """

    def __init__(
        self,
        batch_size: int,
        length: int,
        period: int,
        device: torch.device,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.length, self.period = batch_size, length, min(period, length)
        self.periods = -(-length // self.period)
        start = torch.arange(self.periods, dtype=torch.int32, device=device) * self.period
        token = torch.arange(length, dtype=torch.int32, device=device)
        self.start = start.unsqueeze(1)  # (P, 1)
        self.position = token.expand(batch_size, length)
        self.valid = None
        if lengths is not None:
            self.valid = token < torch.as_tensor(lengths, device=device).unsqueeze(1)
        self.query_position = (self.start + token[: self.period]).repeat(batch_size, 1)

    def whole(self) -> FullCall:
        """The same call with all queries in one row, for layers without a window."""
        call = FullCall(self.batch_size, self.length, self.length, self.start.device)
        call.here, call.valid = self.here, self.valid
        return call

    def rows(self, x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, self.periods * self.period - self.length))
        x = x.view(*x.shape[:2], self.periods, self.period, x.shape[3])  # (B, H, P, C, D)
        return x.transpose(1, 2).flatten(0, 1)

    def unrows(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (self.batch_size, self.periods)).permute(
            0, 1, 3, 2, 4
        )  # (B, P, C, H, D)
        return x.flatten(3).flatten(1, 2)[:, : self.length]

    def past_position(self, size: int) -> Tensor:
        offset = torch.arange(-size, 0, dtype=torch.int32, device=self.start.device)
        return (self.start + offset).repeat(self.batch_size, 1)

    def context(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, window: int | None
    ) -> tuple[list[Memory], State]:
        among = Memory(q, self.rows(k), self.rows(v), self.visible(None, 0, window))
        if self.periods == 1:
            return [among], {}
        size = self.length if window is None else window
        past = Memory(q, self._past(k, size), self._past(v, size), self.visible(size, 0, window))
        return [past, among], {}

    def fading(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, window: int
    ) -> tuple[list[Memory], State]:
        seen = self.visible(2 * window, window, 2 * window)
        return [Memory(q, self._past(k, 2 * window), self._past(v, 2 * window), seen)], {}

    def _past(self, x: Tensor, size: int) -> Tensor:
        """The `size` tokens before each row's first query: (B, Hk, T, D) -> (N, Hk, R, D)."""
        x = pad(x, (0, 0, size, 0))[:, :, : size + (self.periods - 1) * self.period]
        return x.unfold(2, size, self.period).permute(0, 2, 1, 4, 3).flatten(0, 1)
