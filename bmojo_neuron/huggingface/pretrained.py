"""How transformers is to load, initialize and resize the model and its heads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bmojo_neuron.checkpoints.loading import is_foreign, load_checkpoint
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.eidetic import EideticMemory
from bmojo_neuron.linear import unpack
from bmojo_neuron.mixers import Mixer
from bmojo_neuron.mixers.conv import CausalConv

_IDLE = (  # of from_pretrained: true of every checkpoint of another family, or of no weight to it
    *("local_files_only", "trust_remote_code", "use_safetensors", "ignore_mismatched_sizes"),
    *("name_or_path", "low_cpu_mem_usage"),
)


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
        directory = Path(os.fspath(pretrained_model_name_or_path or ""))
        if pretrained_model_name_or_path is not None and is_foreign(directory):
            return cls._from_foreign(directory, output_loading_info, **kwargs)
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

    @classmethod
    def _from_foreign(
        cls,
        directory: Path,
        output_loading_info: bool,
        *,
        dtype: torch.dtype | str | None = None,
        config: BMojoConfig | None = None,
        **others: Any,
    ) -> Any:
        """A checkpoint of another family, whole or not at all; `config` is read anew."""
        asked = {name: value for name, value in others.items() if name not in _IDLE and value}
        if asked:
            raise ValueError(
                f"{', '.join(asked)}: not taken with a checkpoint of another family; convert it "
                "first (bmojo convert), or leave it out"
            )
        named = None if dtype in (None, "auto") else dtype
        exact = getattr(torch, named) if isinstance(named, str) else named
        model: Any = load_checkpoint(directory, exact)
        found = next((part for part in (model, model.model) if type(part) is cls), None)
        if found is None:
            raise ValueError(
                f"pretrained_model_name_or_path: {cls.__name__} takes our own format alone, got "
                f"another family's in {str(directory)!r}; convert it first (bmojo convert)"
            )
        nothing: dict[str, set[str]] = {
            "missing_keys": set(),
            "unexpected_keys": set(),
            "mismatched_keys": set(),
        }
        return (found, nothing) if output_loading_info else found

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
