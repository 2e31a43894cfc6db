"""Packed weights compute what plain ones do, and nobody who looks from outside sees them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.linear import PackedLinear, prepack, unpack

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN"
)


@pytest.fixture
def model() -> BMojoForCausalLM:
    """Head (tied) and MLP are large enough to be packed; the k and v projections are not."""
    torch.manual_seed(0)
    config = BMojoConfig.bmojo(
        hidden_size=512,
        intermediate_size=640,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=800,
        window=16,
        eidetic_size=16,
    )
    return BMojoForCausalLM(config).eval()


def packed_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301 (our own bytes)


def logits(model: BMojoForCausalLM) -> Tensor:
    ids = torch.arange(40).view(1, -1)
    with torch.inference_mode():
        return model.feed(ids, model.new_state())[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize(("inner", "outer"), [(512, 640), (500, 601)])
def test_packed_equals_plain(rows: int, inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inner, outer, bias).eval()
    contiguous = torch.randn(rows, inner)
    turned = torch.randn(2, inner, rows).transpose(1, 2)
    with torch.inference_mode():
        truths = [copy.deepcopy(linear).double()(x.double()) for x in (contiguous, turned)]
        plain = [linear(x) for x in (contiguous, turned)]
        prepack(linear)
        assert isinstance(linear, PackedLinear)
        for truth, reference, x in zip(truths, plain, (contiguous, turned), strict=True):
            error = (linear(x) - truth).abs().max()
            assert error <= 2 * (reference - truth).abs().max() + 1e-6


def test_no_rows() -> None:
    linear = nn.Linear(512, 640).eval()
    prepack(linear)
    with torch.inference_mode():
        assert linear(torch.zeros(0, 512)).shape == (0, 640)


def test_large_layers_are_packed_and_unpacked(model: BMojoForCausalLM) -> None:
    before, truth = {k: v.clone() for k, v in model.state_dict().items()}, logits(model)
    assert "oneDNN weights in" in prepack(model)
    assert {
        "lm_head",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.layer.o_proj",
    } <= packed_names(model)
    assert "model.layers.0.layer.qkv.k_proj" not in packed_names(model)
    torch.testing.assert_close(logits(model), truth, rtol=1e-4, atol=1e-5)
    prepack(model)  # a second time changes nothing
    unpack(model)
    assert not packed_names(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad for p in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), truth)


def test_one_copy_of_what_is_not_shared(model: BMojoForCausalLM) -> None:
    prepack(model)
    assert model.model.layers[0].mlp.gate_proj.weight is None
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_state_dict_is_the_plain_one(model: BMojoForCausalLM) -> None:
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepack(model)
    packed = model.state_dict()
    assert list(packed) == list(plain)
    assert all(torch.equal(packed[name], tensor) for name, tensor in plain.items())
    model.load_state_dict({name: tensor + 1 for name, tensor in plain.items()})
    assert not packed_names(model)
    assert torch.equal(
        model.model.layers[0].mlp.gate_proj.weight, plain["model.layers.0.mlp.gate_proj.weight"] + 1
    )


def test_save_pretrained_is_the_plain_one(model: BMojoForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "plain")
    prepack(model)
    model.save_pretrained(tmp_path / "packed")
    assert packed_names(model)
    plain, packed = (tmp_path / which / "model.safetensors" for which in ("plain", "packed"))
    assert packed.read_bytes() == plain.read_bytes()
    loaded = BMojoForCausalLM.from_pretrained(tmp_path / "packed").eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_copies(
    model: BMojoForCausalLM, duplicate: Callable[[nn.Module], BMojoForCausalLM]
) -> None:
    prepack(model)
    twin = duplicate(model)
    assert packed_names(twin) == packed_names(model)
    assert torch.equal(logits(twin), logits(model))


@pytest.mark.parametrize(
    "change",
    [
        nn.Module.half,
        nn.Module.double,
        nn.Module.train,
        lambda m: m.to("meta"),
        lambda m: m.to(torch.bfloat16),
    ],
    ids=["half", "double", "train", "device", "dtype"],
)
def test_moving_casting_and_training_unpack(
    model: BMojoForCausalLM, change: Callable[[nn.Module], nn.Module]
) -> None:
    prepack(model)
    change(model)
    assert not packed_names(model)
    weight, embedding = model.model.layers[0].mlp.gate_proj.weight, model.model.embed_tokens.weight
    assert (weight.device, weight.dtype) == (embedding.device, embedding.dtype)
    assert weight.requires_grad


def test_eval_keeps_the_layout(model: BMojoForCausalLM) -> None:
    prepack(model)
    names = packed_names(model)
    assert packed_names(model.eval()) == names


def test_what_packed_weights_refuse(model: BMojoForCausalLM) -> None:
    with pytest.raises(ValueError, match="expected eval mode"):
        prepack(model.train())
    prepack(model.eval())
    with pytest.raises(RuntimeError, match="expected no gradient"):
        model(torch.zeros(1, 2, dtype=torch.long))
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"expected float32 on cpu.*float64"),
    ):
        model.lm_head(torch.zeros(1, 512, dtype=torch.float64))


def test_other_dtypes_and_devices_stay_plain(model: BMojoForCausalLM) -> None:
    assert "oneDNN weights in 0 of" in prepack(model.bfloat16())
    assert "oneDNN weights in 0 of" in prepack(model.float().to("meta"))
    assert not packed_names(model)
