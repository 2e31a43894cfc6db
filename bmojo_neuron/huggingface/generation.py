"""What `generate` of transformers asks of this model before it calls `forward`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from bmojo_neuron.huggingface.cache import CACHE_FIELD, BMojoCache, one_cache


class BMojoGenerationMixin(GenerationMixin):
    """transformers' loops over a state that is one piece and counts its tokens by itself."""

    def _prepare_model_inputs(
        self, inputs: Tensor | None, bos_token_id: Tensor | None, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, str | None, dict[str, Any]]:
        """A prompt begins with what its cache holds, and goes on."""
        cache = one_cache(
            model_kwargs.pop("cache", None), model_kwargs.pop("past_key_values", None)
        )
        if cache is not None:
            model_kwargs[CACHE_FIELD] = cache
        prompt, name, others = super()._prepare_model_inputs(  # type: ignore[misc]  # a mixin's self
            inputs, bos_token_id, model_kwargs
        )
        mask = model_kwargs.get("attention_mask")
        seen = 0 if cache is None else cache.get_seq_length()
        whole = mask is None or mask.shape[1] == prompt.shape[1]  # as transformers tells them apart
        if seen and whole and prompt.shape[1] <= seen:
            raise ValueError(
                f"input_ids: expected all tokens, more than the {seen} that {CACHE_FIELD} holds, "
                f"got {prompt.shape[1]}; to pass the new ones alone, pass the attention_mask of all"
            )
        return prompt, name, others

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: Tensor | None = None, tokenizer: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; the tokenizer, which `stop_strings` needs, is none of forward's."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            *args, inputs_embeds=inputs_embeds, **kwargs
        )
        return inputs

    def _prepare_position_ids_for_generation(self, *_: Any) -> None:
        """Positions follow from the tokens: none are made up, those of the caller are checked."""

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        """The cache is always our own, and every row has something to go on from."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation: this model's state is its own BMojoCache, got "
                f"{generation_config.cache_implementation!r}; leave it unset"
            )
        cache = model_kwargs.get(CACHE_FIELD)
        if cache is None and generation_config.use_cache is not False:
            model_kwargs[CACHE_FIELD] = cache = BMojoCache()
        copies = max(generation_config.num_beams, generation_config.num_return_sequences)
        if cache is not None and cache.batch_size not in (-1, copies * batch_size):
            raise ValueError(
                f"{CACHE_FIELD}: expected {copies * batch_size} rows ({batch_size} prompts, "
                f"{copies} sequences of each), got {cache.batch_size}; call its "
                "batch_repeat_interleave first"
            )
        if cache is not None and generation_config.use_cache is False:
            raise ValueError(
                f"use_cache: expected True with {CACHE_FIELD}, which each token continues, got "
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
