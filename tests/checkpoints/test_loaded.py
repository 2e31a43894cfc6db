"""The weights of a loaded model: finite or named, and independent of what becomes of their file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmojo_neuron.checkpoints.loading import load_checkpoint
from tests.model.conftest import tiny_model

NORM = "model.norm.weight"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tiny_model("hybrid").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved" / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_named(file, value, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    tensors[NORM][3] = float(value)
    save_file(tensors, file)
    with pytest.warns(UserWarning, match=f"weights that are not finite: {NORM}$"):
        load_checkpoint(file.parent, dtype)


def test_the_largest_finite_weights_are_not_called_infinite(file, recwarn):
    tensors = load_file(file)
    tensors[NORM].fill_(torch.finfo(torch.float32).max)  # their sum is not finite
    save_file(tensors, file)
    load_checkpoint(file.parent)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_may_be_deleted_or_replaced_while_its_model_runs(file, how, tmp_path):
    expected = {name: tensor.clone() for name, tensor in load_file(file).items()}
    model = load_checkpoint(file.parent)
    save_file({name: tensor + 1 for name, tensor in expected.items()}, tmp_path / "other")
    file.unlink() if how == "deleted" else (tmp_path / "other").replace(file)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, expected[name]), name


@torch.no_grad()
def test_writing_to_a_weight_does_not_write_to_its_file(file):
    before = file.read_bytes()
    for parameter in load_checkpoint(file.parent).parameters():
        parameter.add_(1)
    assert file.read_bytes() == before
