"""The state of a session: named tensors, batch first, all described by one registry.

Allocation, reset, copying, rows, size: everything here follows from the list of `StatePart`s that
the layers declare, so no part can be forgotten. A state is a plain dict: name -> tensor (B,
*shape). See spec/model section 5.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
PAGE = 256  # tokens by which the keys and values of full attention grow, at least


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """What recurrent parts and scores are kept and computed in: float32, or float64 in a float64
    model.
    """
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class StatePart:
    """One tensor that a session must keep.

    Attributes:
        name: key in the state, "layers.<i>.<part>" or "n".
        shape: without the batch axis; the axis named by `grows` is the capacity and stands as 0.
        dtype: storage type; recurrent parts are float32.
        initial: what every element holds before the first token.
        grows: axis (without batch) that grows with the history, or None for a constant size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    initial: float = 0.0
    grows: int | None = None

    def allocate(self, batch_size: int, capacity: int, device: torch.device) -> Tensor:
        """A fresh tensor (B, *shape), filled with `initial`."""
        shape = [capacity if axis == self.grows else size for axis, size in enumerate(self.shape)]
        return torch.full((batch_size, *shape), self.initial, dtype=self.dtype, device=device)


def new_state(
    parts: Iterable[StatePart], batch_size: int, capacity: int, device: torch.device
) -> State:
    """The state before any token; `capacity` tokens for the parts that grow."""
    return {part.name: part.allocate(batch_size, capacity, device) for part in parts}


def copy_state(state: Mapping[str, Tensor]) -> State:
    """A deep copy: nothing is shared with the original."""
    return {name: tensor.clone() for name, tensor in state.items()}


def select_rows(state: Mapping[str, Tensor], rows: Tensor) -> State:
    """The given rows, in the given order, repeats allowed; rows: (R,) int64."""
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}


def stack_rows(states: Sequence[Mapping[str, Tensor]]) -> State:
    """Several states as the rows of one batch. Their capacities must agree (see `grow`)."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def write_rows(state: Mapping[str, Tensor], rows: Tensor, source: Mapping[str, Tensor]) -> State:
    """A copy of `state` whose `rows` are those of `source`, whatever they held before."""
    return {name: tensor.index_copy(0, rows, source[name]) for name, tensor in state.items()}


def grow(state: Mapping[str, Tensor], parts: Iterable[StatePart], capacity: int) -> State:
    """The same state with room for at least `capacity` tokens in the parts that grow; others are
    shared, not copied.

    Capacities go up by doubling, in pages of PAGE tokens, so that growth costs O(1) per token.
    """
    out = dict(state)
    for part in parts:
        if part.grows is None or state[part.name].shape[part.grows + 1] >= capacity:
            continue
        old = state[part.name]
        size = max(-(-capacity // PAGE) * PAGE, 2 * old.shape[part.grows + 1])
        fresh = part.allocate(old.shape[0], size, old.device)
        fresh.narrow(part.grows + 1, 0, old.shape[part.grows + 1]).copy_(old)
        out[part.name] = fresh
    return out


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the parts that hold inf or NaN. Unused capacity holds `initial`, so it is read too.

    One pass over each part, and one wait for the device.
    """
    parts = {name: x for name, x in state.items() if x.is_floating_point() and x.numel()}
    finite = [torch.stack(x.aminmax()).isfinite().all() for x in parts.values()]
    flags = torch.stack(finite).tolist() if finite else []
    return [name for name, ok in zip(parts, flags, strict=True) if not ok]


def check_state(state: Mapping[str, Tensor], parts: Sequence[StatePart], batch_size: int) -> None:
    """Check a state that comes from outside against the registry.

    Raises:
        ValueError: a part is missing, unknown, of another shape or dtype, or holds what no model
            writes: inf or NaN, or positions beyond n.
    """

    def require(ok: bool, name: str, expected: object, got: object) -> None:
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {got}")

    known = [part.name for part in parts]
    for name in known:
        require(name in state, name, "a tensor", "none")
    for name in state:
        require(name in known, name, "no such part", "one")
    growing = [(state[part.name].shape, part.grows + 1) for part in parts if part.grows is not None]
    capacity = max((size for shape, axis in growing for size in shape[axis : axis + 1]), default=0)
    for part in parts:
        tensor = state[part.name]
        sizes = (capacity if axis == part.grows else size for axis, size in enumerate(part.shape))
        shape = (batch_size, *sizes)
        require(tensor.shape == shape, part.name, f"shape {shape}", tuple(tensor.shape))
        require(tensor.dtype == part.dtype, part.name, part.dtype, tensor.dtype)
    for name in not_finite(state):
        require(False, name, "finite numbers", "inf or NaN")
    n = state["n"].unsqueeze(1)
    if growing:
        require(int(n.max()) <= capacity, "n", f"at most the capacity {capacity}", int(n.max()))
    for part in parts:
        if not part.dtype.is_floating_point:  # counts and positions of tokens
            x = state[part.name].view(batch_size, -1)
            ok = bool(((x >= part.initial) & (x <= n)).all())
            least, most = int(x.min()), int(x.max())
            require(ok, part.name, f"{part.initial:g} to n = {int(n.max())}", f"{least} to {most}")


def state_bytes(state: Mapping[str, Tensor]) -> int:
    """Resident bytes of all parts."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
