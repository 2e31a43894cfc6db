"""What `generate` of transformers asks of this model before it calls `forward`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from bmojo_neuron.cache import BMojoCache


class BMojoGenerationMixin(GenerationMixin):
    """transformers' loops over a state that is one piece and counts its tokens by itself."""

    def _prepare_model_inputs(
        self, inputs: Tensor | None, bos_token_id: Tensor | None, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, str | None, dict[str, Any]]:
        """A prompt begins with what its cache holds, and goes on."""
        prompt, name, others = super()._prepare_model_inputs(  # type: ignore[misc]  # a mixin's self
            inputs, bos_token_id, model_kwargs
        )
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        seen = 0 if cache is None else cache.get_seq_length()
        whole = mask is None or mask.shape[1] == prompt.shape[1]  # as transformers tells them apart
        if seen and whole and prompt.shape[1] <= seen:
            raise ValueError(
                f"input_ids: expected all tokens, more than the {seen} that past_key_values holds, "
                f"got {prompt.shape[1]}; to pass the new ones alone, pass the attention_mask of all"
            )
        return prompt, name, others

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
        if cache is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = cache = BMojoCache()
        if cache is not None and generation_config.use_cache is False:
            raise ValueError(
                "use_cache: expected True with past_key_values, which each token continues, got "
                "False; leave one of the two out"
            )
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
