"""Weights that lie elsewhere until their layer runs: the same tokens, the same bits."""

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from bmojo_neuron import BMojoForCausalLM
from tests.model.conftest import random_ids, tiny_model

CPU = torch.device("cpu")


def to_cpu(model: BMojoForCausalLM, folder: Path) -> BMojoForCausalLM:
    return accelerate.cpu_offload(model, execution_device=CPU)


def to_disk(model: BMojoForCausalLM, folder: Path) -> BMojoForCausalLM:
    return accelerate.disk_offload(model, str(folder / "offloaded"), execution_device=CPU)


def loaded_on_disk(model: BMojoForCausalLM, folder: Path) -> BMojoForCausalLM:
    model.save_pretrained(folder / "saved")
    return AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map={"": "disk"}, offload_folder=folder / "offloaded"
    )


@pytest.mark.parametrize("offload", [to_cpu, to_disk, loaded_on_disk])
def test_an_offloaded_model_says_the_same(
    kind: str, offload: Callable[[BMojoForCausalLM, Path], BMojoForCausalLM], tmp_path: Path
) -> None:
    """accelerate: offload to CPU, to disk, device_map={"": "disk"}: the same logits and tokens"""
    plain = tiny_model(kind)
    offloaded = offload(tiny_model(kind), tmp_path)
    assert {p.device.type for p in offloaded.parameters()} == {"meta"}
    ids = random_ids(2, 18)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        assert torch.equal(
            offloaded(ids, use_cache=False).logits, plain(ids, use_cache=False).logits
        )
        assert torch.equal(offloaded(ids, use_cache=True).logits, plain(ids, use_cache=True).logits)
        assert torch.equal(offloaded.generate(ids, **options), plain.generate(ids, **options))
