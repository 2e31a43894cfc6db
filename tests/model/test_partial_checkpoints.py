"""A checkpoint that lacks one parameter: what was learnt stays, what is new starts as it should."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import softplus

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from tests.model.conftest import KINDS, tiny_config, tiny_model

UNTIED = {"tie_word_embeddings": False}
FEWER = {"num_hidden_layers": 1}  # of layers that are all of one type


def one_of_each(kind: str) -> BMojoConfig:
    types = KINDS[kind]["block_types"]
    if len(set(types)) > 1:
        return tiny_config(kind, **UNTIED)
    return tiny_config(kind, **UNTIED, **FEWER, block_types=types[:1])


def check_initial(name: str, value: Tensor, config: BMojoConfig) -> None:
    """What docstrings promise of a parameter that was never trained."""
    part = name.rsplit(".", 1)[-1] if not name.endswith(".weight") else name.split(".")[-2]
    match part:
        case "skip_bias" | "score_bias":
            assert torch.equal(value, torch.ones_like(value))
        case _ if part.endswith("norm"):
            assert torch.equal(value, torch.ones_like(value))
        case "bias" | "innovation_log_bias":  # of a convolution, a projection, an average
            assert torch.equal(value, torch.zeros_like(value))
        case "predictor_bias":
            assert torch.equal(value[0], torch.ones_like(value[0]))
            assert not value[1:].any()
        case "a_log_bias":
            least = 1e-4 if {"gdn", "gka"} & {*config.block_types, config.mixer} else 1
            assert (value.exp() >= least * (1 - 1e-5)).all()
            assert (value.exp() <= 16 + 1e-4).all()
            assert value.unique().numel() > 1
        case "dt_bias":
            assert (softplus(value) >= 1e-3 * (1 - 1e-3)).all()
            assert (softplus(value) <= 0.1 * (1 + 1e-3)).all()
            assert value.unique().numel() > 1
        case "conv" | "q_conv" | "k_conv" | "v_conv":
            bound = value.shape[1] ** -0.5
            assert 0.5 * bound < value.abs().max() <= bound
        case "dt_weight":
            bound = config.mamba_dt_rank**-0.5
            assert 0.5 * bound < value.abs().max() <= bound
        case _:
            assert part.endswith("_proj") or part in ("embed_tokens", "lm_head"), part
            assert value.std().item() == pytest.approx(config.initializer_range, rel=0.2)
            assert value.mean().abs() < 5 * config.initializer_range / math.sqrt(value.numel())


def test_every_parameter_may_be_missing_alone(kind: str, tmp_path: Path) -> None:
    config = one_of_each(kind)
    torch.manual_seed(0)
    model = BMojoForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(7 + torch.rand_like(parameter))  # nothing is so at the start
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    learnt = load_file(file)
    assert learnt.keys() == dict(model.named_parameters()).keys()
    for dropped in learnt:
        rest = {name: tensor for name, tensor in learnt.items() if name != dropped}
        save_file(rest, file, {"format": "pt"})
        loaded, info = BMojoForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == {dropped}
        for name, tensor in loaded.state_dict().items():
            if name == dropped:
                check_initial(name, tensor, config)
            else:
                assert torch.equal(tensor, learnt[name]), f"{name}, where {dropped} is missing"


@pytest.mark.parametrize("dropped", ["model.embed_tokens.weight", "lm_head.weight"])
def test_either_end_of_a_tie_is_enough(dropped: str, tmp_path: Path) -> None:
    model = tiny_model("bmojo")
    model.save_pretrained(tmp_path)
    learnt = model.state_dict()
    rest = {name: tensor.clone() for name, tensor in learnt.items() if name != dropped}
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = BMojoForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in loaded.state_dict().items())
