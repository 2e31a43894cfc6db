"""Models and padded batches shared by the tests of forward and generate."""

import torch

from bmojo_neuron import BMojoForCausalLM
from tests.model.conftest import KINDS, tiny_model

MODELS = {kind: tiny_model(kind) for kind in KINDS}
MIXED = "mamba2+bmojo"
LENGTHS = (30, 17, 5)
WIDTH = max(LENGTHS)


def pad_pattern(pattern: str) -> torch.Tensor:
    mask = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    generator = torch.Generator().manual_seed(11)
    for row, length in enumerate(LENGTHS):
        places = {
            "right": torch.arange(length),
            "left": torch.arange(WIDTH - length, WIDTH),
            "holes": torch.randperm(WIDTH, generator=generator)[:length].sort().values,
        }
        mask[row, places[pattern]] = 1
    return mask


def uncached(model: BMojoForCausalLM, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model(ids, use_cache=False, **kwargs).logits
