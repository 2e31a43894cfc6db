"""What `generate` of transformers asks of this model before it calls `forward`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from bmojo_neuron.cache import BMojoCache


class BMojoGenerationMixin(GenerationMixin):
    """transformers' loops over a state that is one piece and counts its tokens by itself."""

    def _prepare_position_ids_for_generation(self, *_: Any) -> None:
        """Positions follow from the tokens: none are made up, those of the caller are checked."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> bool:
        """The cache is always our own, and every row has something to go on from."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation: this model's state is its own BMojoCache, got "
                f"{generation_config.cache_implementation!r}; leave it unset"
            )
        cache = model_kwargs.get("past_key_values")
        if generation_config.use_cache is not False and cache is None:
            model_kwargs["past_key_values"] = cache = BMojoCache()
        mask = model_kwargs.get("attention_mask")
        if mask is not None:
            chunked = generation_config.prefill_chunk_size is not None
            _check_new_tokens(mask, 0 if cache is None else cache.get_seq_length(), chunked)
        return True


def _check_new_tokens(mask: Tensor, seen: int, chunked: bool) -> None:
    """What is generated follows a row's last valid token, which must be in the last piece fed."""
    empty = (mask[:, seen:] != 0).any(1).logical_not().nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"attention_mask: expected a valid token in the new columns (from {seen} on) of every "
            f"row, got none in rows {empty}; leave these rows out or start them with a token"
        )
    if chunked and not bool(mask[:, -1].all()):
        raise ValueError(
            "prefill_chunk_size: expected None for rows that end in padding; leave it out (this "
            "model reads a prompt in pieces by itself) or pad on the left"
        )
