"""The whole layer against the spec, token by token: agreeing with itself would prove nothing."""

import pytest
import torch

from tests.model.conftest import KINDS, random_ids, tiny_model
from tests.model.reference import Reference

PUBLISHED = KINDS["mamba2-as_published"]
CASES = {
    "boundary": ("bmojo", {}),
    "short-period": ("bmojo", {"selection_period": 5}),
    "odd-window": ("bmojo", {"window": 7, "selection_period": 3, "eidetic_size": 2}),
    "absolute": ("bmojo-absolute", {}),
    "decay-untied": ("bmojo", {"eidetic_half_life": 6.0, "tie_fading_projections": False}),
    "fading-only": ("bmojo_f-untied", {}),
    "mamba2-rope": ("bmojo_f", {"mamba2_rope": True}),
    "mamba2-groups": (
        "bmojo_f",
        {name: value for name, value in PUBLISHED.items() if name.startswith("mamba2_")},
    ),
    "mamba2-without-conv-bias": (
        "bmojo_f",
        {"mamba2_conv_bias": False, "mamba2_dt_min": 0.3, "mamba2_norm_eps": 0.1},
    ),
    "mamba": ("bmojo_f", {"mixer": "mamba"}),
    "mamba-biases": (
        "bmojo_f",
        {
            "mixer": "mamba",
            "mamba_inner_size": 27,
            "mamba_state_size": 5,
            "mamba_dt_rank": 3,
            "mamba_conv_size": 2,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_spec(case):
    """Every parameter is moved off its initial value, where signs and factors could hide."""
    kind, changes = CASES[case]
    model = tiny_model(kind, hidden_size=16, intermediate_size=24, **changes).double()
    ids = random_ids(1, 37)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        expected = Reference(model).logits(ids[0])
        full = model(ids, use_cache=False).logits[0]
        state, pieces = model.new_state(1), []
        for piece in ids.split(9, dim=1):
            logits, state = model.feed(piece, state, all_tokens=True)
            pieces.append(logits[0])
    # Rotary angles are float32 in the model, whatever its dtype.
    torch.testing.assert_close(full, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-4, rtol=1e-5)
