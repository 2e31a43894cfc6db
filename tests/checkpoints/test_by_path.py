"""Directories that transformers wrote, loaded as they are: by path, sharded, and by the server."""

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.inspect import inspect
from tests.model.conftest import random_ids

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
THEIRS = {
    "llama-llama3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=8)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
}


@pytest.fixture(params=THEIRS)
def theirs(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, config = THEIRS[request.param]
    torch.manual_seed(0)
    return kind(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_directory_is_loaded_as_it_is(theirs, shard, dtype, tmp_path: Path):
    theirs.to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    ours = BMojoForCausalLM.from_pretrained(tmp_path)
    assert ours.dtype == dtype
    assert not ours.training
    ids = random_ids(2, 30)
    exact, expected = (
        kind.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
        for kind in (BMojoForCausalLM, type(theirs))
    )
    torch.testing.assert_close(exact, expected, atol=1e-4, rtol=1e-4)
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id


@torch.no_grad()
def test_converted_it_is_one_of_ours(theirs, tmp_path: Path):
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    ids = random_ids(2, 30)
    a, b = (BMojoForCausalLM.from_pretrained(tmp_path / name) for name in ("theirs", "ours"))
    apart = {"architectures": None, "_name_or_path": None}
    assert a.config.to_dict() | apart == b.config.to_dict() | apart
    assert torch.equal(a(ids).logits, b(ids).logits)
    count = sum(p.numel() for p in theirs.parameters())
    assert inspect(tmp_path / "theirs").parameters == count
