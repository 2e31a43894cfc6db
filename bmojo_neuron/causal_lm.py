"""The model with a head: the next token, or a class of the whole text.

Letters: B batch, T tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.feeding import feed
from bmojo_neuron.huggingface.arguments import LOSS_OPTIONS, check_labels
from bmojo_neuron.huggingface.cache import CACHE_FIELD, BMojoCache, one_cache
from bmojo_neuron.huggingface.generation import BMojoGenerationMixin
from bmojo_neuron.huggingface.loss import IGNORED, next_tokens, row_shares
from bmojo_neuron.huggingface.pretrained import BMojoPreTrainedModel
from bmojo_neuron.model import BMojoModel
from bmojo_neuron.ops import Ops
from bmojo_neuron.state import State, StatePart


class BMojoForCausalLM(BMojoPreTrainedModel, BMojoGenerationMixin):
    """The language model.

    Args:
        config: the architecture.
        backend: whose kernels run the ops: "torch" (any device). Never stored in the configuration.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: BMojoConfig, backend: str = "torch") -> None:
        super().__init__(config)
        self.model = BMojoModel(config, backend)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def _base(self) -> BMojoModel:
        return cast(BMojoModel, self.model)

    @property
    def ops(self) -> Ops:
        """The ops that run the model."""
        return self._base.ops

    @property
    def chunk(self) -> int:
        """Longest step; see `BMojoModel.chunk`."""
        return self._base.chunk

    def state_parts(self) -> list[StatePart]:
        """The registry: every tensor that a session keeps."""
        return self._base.state_parts()

    def new_state(self, *args: Any, **kwargs: Any) -> State:
        """The state before any token; see `BMojoModel.new_state`."""
        return self._base.new_state(*args, **kwargs)

    def select(self, state: State, at_boundary: Tensor) -> tuple[State, State]:
        """The merge into eidetic memory at a boundary; see `BMojoModel.select`."""
        return self._base.select(state, at_boundary)

    def step(
        self, tokens: Tensor, n_valid: Tensor | None, state: State, **options: bool
    ) -> tuple[Tensor, State]:
        """`BMojoModel.step`, with logits (B, V), or (B, T, V) if `all_tokens`."""
        h, new = self.model.step(tokens, n_valid, state, **options)
        return self.lm_head(h), new

    def feed(
        self,
        ids: Tensor,
        state: State,
        *,
        lengths: Sequence[int] | None = None,
        all_tokens: bool = False,
        donate: bool = False,
    ) -> tuple[Tensor, State]:
        """Feed any number of tokens: plan, select and step until all are consumed.

        Args:
            ids: (B, T) int32 or int64, T >= 1, right-padded where `lengths` says so.
            state: B rows; left as it was unless `donate`.
            lengths: valid tokens per row, each 0..T; None: all T.
            all_tokens: return logits of every token (zeros at padding) rather than of the last
                valid one.
            donate: the old state is given up, so its memory may hold the new one.

        Returns:
            logits (B, V) (zeros for a row of length 0) or (B, T, V), and the new state.

        Raises:
            ValueError: shapes do not fit each other, or a row would hold more than 2^31 - 1 tokens.
        """
        step = functools.partial(self.step, all_tokens=all_tokens)
        return feed(self, step, ids, state, lengths, all_tokens, donate)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BMojoCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: BMojoCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a batch, as every causal LM of transformers gives them.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, cache: see
                `BMojoModel.forward`.
            labels: (B, T) token ids, -100 = ignored, as all at padding are; adds `loss` (in
                training with the innovation loss; both are divided by `num_items_in_batch` where
                that is given).
            use_cache: return the state; default: as the base model has it, but not with labels: a
                loss with a cache is that of the next token alone.
            logits_to_keep: only the last so many positions, or these; 0 = all.

        Raises:
            ValueError: an argument has the wrong shape or says something that cannot be honoured.
        """
        options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        if use_cache is None and labels is not None:
            use_cache = False
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=one_cache(cache, past_key_values),
            **kwargs,
        )
        h = outputs.last_hidden_state
        targets = options.pop("shift_labels", None)
        check_labels(h.shape[:2], labels, targets, logits_to_keep)
        logits = self.lm_head(_keep(h, logits_to_keep))
        loss = None
        if labels is not None:
            ignored = options.get("ignore_index", IGNORED)
            if targets is None:
                mask = None if attention_mask is None else attention_mask[:, -h.shape[1] :]
                targets = next_tokens(labels, ignored, mask)
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, shift_labels=targets, **options
            )
            if outputs.innovation is not None:
                shares = row_shares(targets, ignored, options.get("num_items_in_batch"))
                innovation = (shares * outputs.innovation).sum()
                loss = loss + self.config.innovation_loss_weight * innovation
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE_FIELD: getattr(outputs, CACHE_FIELD)},
        )


class BMojoForSequenceClassification(GenericForSequenceClassification, BMojoPreTrainedModel):
    """transformers' classifier: a linear layer over the last valid token's hidden state."""


def _keep(x: Tensor, positions: int | Tensor) -> Tensor:
    if isinstance(positions, int):
        return x[:, -positions:] if positions else x
    return x[:, positions]
