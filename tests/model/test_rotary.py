"""Rope types whose frequencies follow the length of a text: no split of it changes a number."""

from typing import Any

import pytest
import torch

from bmojo_neuron.norm import Rotary
from tests.model.conftest import random_ids, tiny_config, tiny_model

ORIGINAL = 20
ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 3.0},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.0, 2.0, 3.0, 5.0],
        "original_max_position_embeddings": ORIGINAL,
    },
}
ropes = pytest.mark.parametrize("rope", ROPES)


def changes_of(rope: str) -> dict[str, Any]:
    parameters = {"rope_type": rope, "rope_theta": 500.0} | ROPES[rope]
    return {"max_position_embeddings": ORIGINAL, "rope_parameters": parameters}


@ropes
def test_frequencies_change_with_the_first_token_beyond_the_original_length(rope):
    rotary = Rotary(tiny_config("attention", **changes_of(rope)))
    position = torch.arange(ORIGINAL + 2, dtype=torch.int32).unsqueeze(0)
    cos = rotary(position, torch.float32).cos[0, 0, :, :4] / rotary.scaling
    short = torch.tensor(ROPES[rope].get("short_factor", [1.0] * 4))
    angle = position[0, :, None] / (short * 500.0 ** (torch.arange(4) / 4))
    torch.testing.assert_close(cos[:ORIGINAL], angle[:ORIGINAL].cos())
    assert (cos[ORIGINAL:] - angle[ORIGINAL:].cos()).abs().max() > 0.01


@ropes
@pytest.mark.parametrize("kind", ["bmojo", "bmojo-absolute", "attention-plain"])
@torch.no_grad()
def test_any_split_beyond_the_original_length_is_one_shot(kind, rope):
    model = tiny_model(kind, attention_bias=True, mlp_bias=True, **changes_of(rope))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    ids = random_ids(2, 50)
    expected = model(ids, use_cache=False).logits
    for sizes in ([50], [19, 1, 2, 28], [1] * 50):
        state, pieces = model.new_state(2), []
        for piece in ids.split(sizes, dim=1):
            logits, state = model.feed(piece, state, all_tokens=True)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=0)
