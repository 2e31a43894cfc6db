"""AdamW as every training here has it: what decays, what is clipped with what, how it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

FORETOLD = ("predictor_bias", "innovation_log_bias")  # what the innovation loss trains


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what wants a gradient; matrices decay, vectors do not; the innovation's predictor
    and average are a group of their own.
    """
    named = _trained(model)
    predictor = [p for name, p in named if name.endswith(FORETOLD)]
    matrices = [p for name, p in named if p.dim() == 2 and not name.endswith(FORETOLD)]
    vectors = [p for name, p in named if p.dim() != 2 and not name.endswith(FORETOLD)]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": predictor, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), foreach=True
    )


def warmup_cosine(peak: float, step: int, warmup: int, steps: int) -> float:
    """The learning rate of a step: it rises over `warmup` steps, falls on a cosine to a
    hundredth of `peak` until step `steps`, and stays there.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def clip_gradients(model: nn.Module, norm: float) -> None:
    """The predictor is clipped by itself, so that its loss does not eat the others' norm."""
    named = _trained(model)
    for own in (False, True):
        clipped = [p for name, p in named if name.endswith(FORETOLD) is own]
        torch.nn.utils.clip_grad_norm_(clipped, norm)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state by `INDEX.KEY`, where INDEX counts its parameters."""
    state = [optimizer.state.get(parameter, {}) for parameter in _parameters(optimizer)]
    return {
        f"{i}.{key}": value.contiguous()
        for i, part in enumerate(state)
        for key, value in part.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    for i, parameter in enumerate(_parameters(optimizer)):
        optimizer.state[parameter] = {
            key: tensors[f"{i}.{key}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{i}.{key}" in tensors
        }


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
