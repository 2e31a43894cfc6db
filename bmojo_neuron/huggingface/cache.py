"""The state of a batch as a transformers `Cache`, so that `generate` and its loops carry it like
any other.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from bmojo_neuron.state import State, copy_state, select_rows

CACHE_FIELD = (  # what the installed transformers calls a cache: "cache" from 5.24 on
    "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
)


def one_cache(cache: BMojoCache | None, past_key_values: BMojoCache | None) -> BMojoCache | None:
    """The cache, under whichever of its two names it was given.

    Raises:
        ValueError: both were given, or it is another model's.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache, past_key_values: expected one of them (one thing), got both")
    name = "past_key_values" if cache is None else "cache"
    given = past_key_values if cache is None else cache
    if given is not None and not isinstance(given, BMojoCache):
        raise ValueError(
            f"{name}: expected a BMojoCache (as this model returns it), got "
            f"{type(given).__name__}; leave it out to start anew"
        )
    return given


class BMojoCache(Cache):
    """Owns one state; `forward` reads it and puts the next one in its place, in the same memory
    where it can.

    Attributes:
        state: the state (see `bmojo_neuron.state`), or None before the first forward.
        seen: columns fed so far, padding included (what transformers calls the sequence length).
    """

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.state = state
        self.seen = 0 if state is None else int(state["n"].max())

    def __deepcopy__(self, memo: dict[int, Any]) -> BMojoCache:
        """A branch of its own. A state made with gradients enabled stays in their graph."""
        branch = copy.copy(self)
        branch.state = None if self.state is None else copy_state(self.state)
        return branch

    def __len__(self) -> int:
        """Layers of the model whose state it holds; 0 before the first forward."""
        return len({name.split(".")[1] for name in self.state or () if "." in name})

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else self.state["n"].shape[0]

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_linear(self) -> list[bool]:
        """transformers slices a prompt by what a cache has seen unless all its layers are so."""
        return [False]

    @property
    def is_croppable(self) -> bool:
        return False

    def reset(self) -> None:
        self.state, self.seen = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = select_rows(self.state, indices.to(self.state["n"].device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            rows = torch.arange(self.batch_size, device=self.state["n"].device)
            self.state = select_rows(self.state, rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(
                "crop: a recurrent state cannot be rewound; keep a copy to go back to "
                "(bmojo_neuron.state.copy_state). Assisted generation, which rewinds, is not "
                "possible with this model"
            )

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError(
            "update: this cache is advanced by the model's forward as a whole, not layer by layer"
        )
