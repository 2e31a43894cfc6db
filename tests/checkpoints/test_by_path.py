"""Directories that transformers wrote, loaded as they are: by path, sharded, and by the server."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.checkpoints.convert import convert
from bmojo_neuron.inspect import inspect
from bmojo_neuron.loading import load_pretrained
from tests.model.conftest import random_ids
from tests.server.conftest import byte_tokenizer

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


MAMBA2 = Mamba2Config(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, n_groups=2
)


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


@pytest.fixture(params=["llama", "qwen3", "mamba2"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kinds = THEIRS | {"mamba2": (Mamba2ForCausalLM, MAMBA2)}
    kind, config = kinds[request.param]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    return tmp_path


def change(path: Path, **tensors: torch.Tensor) -> None:
    file = path / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


def name_of(path: Path, end: str) -> str:
    return next(n for n in load_file(path / "model.safetensors") if n.endswith(end))


@pytest.mark.parametrize("keep", [0, 7, -10])
def test_a_truncated_file_is_refused(foreign, keep):
    file = foreign / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors: expected a whole safetensors file"):
        BMojoForCausalLM.from_pretrained(foreign)


def test_an_index_that_names_an_absent_file_is_refused(foreign):
    (foreign / "model.safetensors").rename(foreign / "one.safetensors")
    tensors = load_file(foreign / "one.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "one.safetensors")}
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    BMojoForCausalLM.from_pretrained(foreign)
    index["weight_map"][next(iter(tensors))] = "two.safetensors"
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"two.safetensors: expected a whole safetensors file"):
        BMojoForCausalLM.from_pretrained(foreign)


def test_weights_that_are_not_finite_are_named(foreign):
    name = name_of(foreign, "norm.weight")
    tensor = load_file(foreign / "model.safetensors")[name]
    tensor[3] = float("nan")
    change(foreign, **{name: tensor})
    with pytest.warns(UserWarning, match="weights that are not finite: model.*norm"):
        BMojoForCausalLM.from_pretrained(foreign)


def test_an_embedding_of_another_size_than_the_vocabulary_is_refused(foreign):
    name = name_of(foreign, ("embed_tokens.weight", "embeddings.weight"))
    change(foreign, **{name: torch.zeros(51, 32)})
    with pytest.raises(ValueError, match=rf"of another shape \({name} \[51, 32\] for \[50, 32\]"):
        BMojoForCausalLM.from_pretrained(foreign)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(foreign):
    byte_tokenizer().save_pretrained(foreign)
    with pytest.raises(ValueError, match="tokenizer: expected at most the model's 50 tokens, got"):
        load_pretrained(foreign)
