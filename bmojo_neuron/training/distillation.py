"""Layer-wise distillation: each replaced layer learns to answer as the base's attention did.

A layer is fed what the base's layer is fed, so none sees the errors of those below it.

Letters: B batch, T tokens, d hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.checkpoints.loading import fill, open_checkpoint
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.model import Block
from bmojo_neuron.state import State
from bmojo_neuron.window import Call

SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")  # in which base and student agree


class Distillation:
    """A student whose replaced layers, and nothing else, learn from a base.

    Args:
        student: the model to train; the parameters of all other layers lose their gradient.
        base: directory of the model that it was primed from.

    Attributes:
        layers: indices of the replaced layers.

    Raises:
        ValueError: the base is not whole or of another shape, or no layer differs from its own.
    """

    def __init__(self, student: BMojoForCausalLM, base: Path) -> None:
        checkpoint = open_checkpoint(base)
        self.student, self.layers = student, replaced_layers(student.config, checkpoint.config)
        self.base = fill(checkpoint, torch.float32)
        self._base_saw: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> its input, its output
        student.requires_grad_(False)
        for i in self.layers:
            student.model.layers[i].layer.requires_grad_(True)
            self.base.model.layers[i].layer.register_forward_hook(self._recorder(i))

    def errors(self, tokens: Tensor) -> tuple[dict[int, Tensor], Tensor | None]:
        """How far each replaced layer is from the base's.

        Args:
            tokens: (B, T) int64.

        Returns:
            Each layer's mean squared error as a share of the mean square of what it should give,
            and, in training mode, each row's innovation loss (B,) where a layer has one.
        """
        with torch.no_grad():
            self.base.model.full(tokens)
        errors: dict[int, Tensor] = {}
        index = {self.student.model.layers[i]: i for i in self.layers}

        def alone(
            block: Block, h: Tensor, call: Call, state: State
        ) -> tuple[Tensor, State, Tensor | None]:
            if block not in index:
                return h, {}, None
            u, wanted = self._base_saw.pop(index[block])  # (B, T, d) each
            y, new = block.layer(u, call, state)
            errors[index[block]] = (y - wanted).square().mean() / wanted.square().mean()
            return h, {}, new.get("innovation_loss")

        model = self.student.model
        whole, model.run_block = model.run_block, alone
        try:
            _, innovation = model.full(tokens)
        finally:
            model.run_block = whole
        return errors, innovation

    def _recorder(self, i: int) -> Any:
        def record(_: Any, given: tuple[Tensor, ...], out: tuple[Tensor, State]) -> None:
            self._base_saw[i] = given[0], out[0]

        return record


def replaced_layers(student: BMojoConfig, base: BMojoConfig) -> list[int]:
    """Indices of the student's layers that are of another kind than the base's.

    Raises:
        ValueError: the two differ in shape, or in no layer.
    """
    different = [
        f"{name} {getattr(base, name)} for {getattr(student, name)}"
        for name in SHAPE
        if getattr(base, name) != getattr(student, name)
    ]
    if different:
        raise ValueError(
            f"distill: expected the model that this one was primed from, got {', '.join(different)}"
        )
    layers = [i for i in range(len(base.block_types)) if _kind(student, i) != _kind(base, i)]
    if not layers:
        raise ValueError(
            "distill: expected a base of which layers were replaced, got one with the same "
            f"{len(base.block_types)} kinds of layers; fine-tune without it"
        )
    return layers


def _kind(config: BMojoConfig, layer: int) -> tuple[str, int]:
    kind = config.block_types[layer]
    return kind, config.sliding_window if kind == "sliding_attention" else 0
