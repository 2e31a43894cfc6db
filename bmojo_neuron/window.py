"""Where the keys of a window come from: a ring in the state (step form) or the sequence itself (full form).

Both forms put the same question to memory attention: some rows of queries, the keys before them, the keys among them.
The step form has one row per session, its past in rings. The full form (training) has one row per selection period,
all at once, its past cut out of the sequence. Worked example, W = C = 4, tokens 0..11: the full form makes three rows,
queries 0-3, 4-7, 8-11; the past of the last is keys 4-7 (W = 4) and fading keys 0-7 (2W = 8).

Letters: B batch, T tokens of this call, N rows of queries (B, or B * periods), Q queries per row, Hk kv heads,
D head dim, R size of a past, n tokens before this call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import pad

from bmojo_neuron.norm import Rotation
from bmojo_neuron.state import State


def ring_position(n: Tensor, size: int) -> Tensor:
    """Position of the token in each slot of a ring of `size` after n tokens; negative = still empty. (B, size) int32.

    The token at position p stands in slot p mod size, so slot r holds the largest p < n with p = r mod size.
    """
    slot = torch.arange(size, dtype=torch.int32, device=n.device)
    last = (n - 1).unsqueeze(1)
    return last - (last - slot).remainder(size)


def write_ring(ring: Tensor, new: Tensor, n: Tensor, n_valid: Tensor, donate: bool) -> Tensor:
    """Put the first n_valid of `new` (B, ..., T, D) into `ring` (B, ..., R, D) at positions n, n+1, ...; T <= R.

    With `donate` a single token is written into the ring's own memory (the caller gives up the old state). That is safe
    before the ring is read: the slot it takes held the token that has just left every window.
    """
    size, length = ring.shape[-2], new.shape[-2]
    extra = [1] * (ring.dim() - 3)
    if length == 1 and donate:
        slot = n.remainder(size).view(-1, *extra, 1, 1).expand_as(new).long()
        valid = (n_valid > 0).view(-1, *extra, 1, 1)
        return ring.scatter_(-2, slot, torch.where(valid, new.to(ring.dtype), ring.gather(-2, slot)))
    index = torch.arange(size, dtype=torch.int32, device=n.device)
    index = (index - n.unsqueeze(1)).remainder(size)  # (B, R): which new token falls into each slot
    written = (index < n_valid.unsqueeze(1)).view(-1, *extra, size, 1)
    index = index.clamp(max=length - 1).view(-1, *extra, size, 1).expand(*new.shape[:-2], size, new.shape[-1])
    return torch.where(written, new.gather(-2, index.long()).to(ring.dtype), ring)


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
        self._masks: dict[tuple[int | None, int, int | None], Tensor] = {}

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (N, H, Q, D)."""

    @abstractmethod
    def unrows(self, x: Tensor) -> Tensor:
        """(N, H, Q, D) -> (B, T, H * D)."""

    @abstractmethod
    def past(self, new: Tensor, state: State, name: str, size: int) -> Tensor:
        """The `size` keys or values before each row's first query: (N, Hk, R, D); `new` is this call's (B, Hk, T, D)."""

    @abstractmethod
    def past_position(self, size: int) -> Tensor:
        """Positions of what `past` returns, (N, R) int32; negative = no such token."""

    def visible(self, past: int | None, near: int, far: int | None) -> Tensor:
        """Mask (N, Q, S): key j shows itself to query i when near <= i - j < far. Computed once per call and kind.

        Args:
            past: size of the past whose keys are meant, or None for the keys among the queries.
        """
        kind = (past, near, far)
        if kind not in self._masks:
            position = self.query_position if past is None else self.past_position(past)
            self._masks[kind] = visible(self.query_position, position, near, far)
        return self._masks[kind]


def visible(query: Tensor, key: Tensor, near: int, far: int | None) -> Tensor:
    """(N, Q) and (N, S) int32 positions -> (N, Q, S) bool: near <= query - key < far, and the key exists (>= 0)."""
    lag = query.unsqueeze(2) - key.unsqueeze(1)
    seen = (lag >= near) & (key >= 0).unsqueeze(1)
    return seen if far is None else seen & (lag < far)


class StepCall(Call):
    """T tokens after a state; rows are sessions, pasts are the state's rings."""

    def __init__(self, n: Tensor, n_valid: Tensor, length: int, donate: bool) -> None:
        super().__init__()
        offset = torch.arange(length, dtype=torch.int32, device=n.device)
        self.n, self.n_valid, self.donate = n, n_valid, donate
        self.position = self.query_position = n.unsqueeze(1) + offset
        self.valid = offset < n_valid.unsqueeze(1)

    def rows(self, x: Tensor) -> Tensor:
        return x

    def unrows(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def past(self, new: Tensor, state: State, name: str, size: int) -> Tensor:
        return state[name]

    def past_position(self, size: int) -> Tensor:
        return ring_position(self.n, size)

    def write(self, state: State, name: str, new: Tensor) -> Tensor:
        """The ring `name` after this call; `new` (B, Hk, T, D), or (B, T) for a ring of scalars."""
        ring = state[name]
        if ring.dim() == 2:
            return write_ring(ring[..., None], new[..., None], self.n, self.n_valid, self.donate)[..., 0]
        return write_ring(ring, new, self.n, self.n_valid, self.donate)

    def tail(self, extended: Tensor, size: int) -> Tensor:
        """The `size` rows of `extended` (B, size+T, E) that end at each session's last valid token: (B, size, E)."""
        index = self.n_valid.unsqueeze(1) + torch.arange(size, dtype=torch.int32, device=extended.device)
        return extended.gather(1, index.long().unsqueeze(2).expand(-1, -1, extended.shape[2]))


class FullCall(Call):
    """A whole sequence from its start; rows are selection periods, pasts are cut out of the sequence."""

    valid = None

    def __init__(self, batch_size: int, length: int, period: int, device: torch.device) -> None:
        super().__init__()
        self.batch_size, self.length, self.period = batch_size, length, min(period, length)
        self.periods = -(-length // self.period)
        self.start = torch.arange(self.periods, dtype=torch.int32, device=device) * self.period  # (P,)
        self.position = torch.arange(length, dtype=torch.int32, device=device).expand(batch_size, length)
        offset = torch.arange(self.period, dtype=torch.int32, device=device)
        self.query_position = (self.start.unsqueeze(1) + offset).repeat(batch_size, 1)  # (B*P, C)

    def rows(self, x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, self.periods * self.period - self.length))
        return x.unflatten(2, (self.periods, self.period)).transpose(1, 2).flatten(0, 1)

    def unrows(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (self.batch_size, self.periods)).permute(0, 1, 3, 2, 4)  # (B, P, C, H, D)
        return x.flatten(3).flatten(1, 2)[:, : self.length]

    def causal(self) -> Tensor:
        """Mask (1, T, T) of full attention: each token sees itself and all before."""
        position = self.position[:1]
        return visible(position, position, 0, None)

    def past(self, new: Tensor, state: State, name: str, size: int) -> Tensor:
        x = pad(new, (0, 0, size, 0))[:, :, : size + (self.periods - 1) * self.period]
        return x.unfold(2, size, self.period).permute(0, 2, 1, 4, 3).flatten(0, 1)  # (B*P, Hk, R, D)

    def past_position(self, size: int) -> Tensor:
        offset = torch.arange(-size, 0, dtype=torch.int32, device=self.start.device)
        return (self.start.unsqueeze(1) + offset).repeat(self.batch_size, 1)
