"""Tiny random models, one per layer type, large enough for every boundary to be crossed."""

from typing import Any

import pytest
import torch

from bmojo_neuron import BMojoConfig, BMojoForCausalLM

VOCABULARY = 50
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"block_types": ["attention"] * 2},
    "attention-plain": {
        "block_types": ["attention", "sliding_attention"],
        "qk_norm": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "sliding_attention": {"block_types": ["sliding_attention"] * 2},
    "mamba2": {"block_types": ["mamba2"] * 2},
    "mamba2-as_published": {  # by its authors: heads of x, groups of B and C
        "block_types": ["mamba2"] * 2,
        "intermediate_size": 0,
        "mamba2_num_heads": 6,
        "mamba2_num_kv_heads": 2,
        "mamba2_num_x_heads": 6,
        "mamba2_num_c_heads": 2,
        "mamba2_norm_groups": 2,
        "mamba2_proj_bias": True,
        "mamba2_qk_norm": False,
        "mamba2_dt_min": 0.01,
        "mamba2_dt_max": 0.2,
    },
    "mamba": {"block_types": ["mamba"] * 2},
    "gdn": {"block_types": ["gdn"] * 2},
    "gka": {"block_types": ["gka"] * 2, "gka_ridge": 0.1},
    "bmojo_f": {"block_types": ["bmojo_f"] * 2},
    "bmojo_f-untied": {"block_types": ["bmojo_f"] * 2, "tie_fading_projections": False},
    "bmojo": {"block_types": ["bmojo"] * 2},
    "bmojo-short_period": {"block_types": ["bmojo"] * 2, "selection_period": 5},
    "bmojo-absolute": {
        "block_types": ["bmojo"] * 2,
        "eidetic_position": "absolute",
        "eidetic_half_life": 20.0,
        "eidetic_score_bias": False,
    },
    "bmojo-mamba": {"block_types": ["bmojo"] * 2, "mixer": "mamba"},
    "bmojo-gdn": {"block_types": ["bmojo"] * 2, "mixer": "gdn"},
    "mamba2+bmojo": {"block_types": ["mamba2", "bmojo"]},
    "hybrid": {"block_types": ["mamba2", "attention"]},
    "bmojo-no_mlp": {"block_types": ["bmojo"] * 2, "intermediate_size": 0},
}


def tiny_config(kind: str, **changes: Any) -> BMojoConfig:
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "window": 8,
        "eidetic_size": 6,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return BMojoConfig(**(options | KINDS[kind] | changes))


def tiny_model(kind: str, **changes: Any) -> BMojoForCausalLM:
    torch.manual_seed(0)
    return BMojoForCausalLM(tiny_config(kind, **changes)).eval()


def random_ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def model(kind: str) -> BMojoForCausalLM:
    return tiny_model(kind)
