"""How transformers is to load, initialize and resize the model and its heads."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.eidetic import EideticMemory
from bmojo_neuron.linear import unpack
from bmojo_neuron.mixers import Mixer
from bmojo_neuron.mixers.conv import CausalConv


class BMojoPreTrainedModel(PreTrainedModel):
    """What the base model and its heads share: how transformers is to treat them."""

    config_class = BMojoConfig
    config: BMojoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads it so)
    _is_stateful = True  # transformers: this cache cannot be rewound

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but a checkpoint that lacks parameters of the base model is refused.

        Those of a head may be new, as they are where a head is put on a base model: transformers
        warns and draws them. With `output_loading_info` any may be, for the caller is told which.

        Returns:
            The model; with `output_loading_info` (model, dict of missing_keys and so on).

        Raises:
            ValueError: parameters of the base model are missing.
        """
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        if output_loading_info:
            return model, info
        prefix = "" if model.base_model is model else f"{cls.base_model_prefix}."
        missing = sorted(name for name in info["missing_keys"] if name.startswith(prefix))
        if missing and pretrained_model_name_or_path is not None:
            raise ValueError(
                "pretrained_model_name_or_path: expected a checkpoint with every parameter of the "
                f"base model, got one without {', '.join(missing)}; with output_loading_info=True "
                "they are drawn at random"
            )
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # Each sets its own parameters only: transformers passes over a module whose own are loaded.
        if isinstance(module, CausalConv | Mixer | EideticMemory):
            module.reset()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; packed layers are unpacked first, for the head changes its size."""
        unpack(self)
        return super().resize_token_embeddings(*args, **kwargs)
