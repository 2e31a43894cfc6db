import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import bitsandbytes as bnb
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.utils import TorchAOBaseTensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
)

from bmojo_neuron.model import default_model_path
from tests.model.test_quantized import heldout_ids, text_ids


@cache
def embedded() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(default_model_path())


@cache
def mamba2() -> PreTrainedModel:
    """transformers' own Mamba-2, trained for a while on the embedded model's text."""
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=embedded().config.vocab_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=32,
        state_size=32,
        n_groups=1,
        chunk_size=64,
        tie_word_embeddings=True,
    )
    model = Mamba2ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for ids in text_ids("train", rows=8 * 60, length=64).split(8):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def agreement(model: nn.Module, quantized: nn.Module) -> float:
    """Share of held-out tokens after which both predict the same next one."""
    ids = heldout_ids()
    both = [m(input_ids=ids, use_cache=False).logits.argmax(-1) for m in (model, quantized)]
    return (both[0] == both[1]).float().mean().item()


def check_int8(quantize: Callable[..., nn.Module], folder: Path, record_property) -> None:
    """The quantized embedded model against the plain one, and a Mamba2 in the same way."""
    ours, theirs = (
        agreement(model, quantize(copy.deepcopy(model), folder / name))
        for name, model in (("ours", embedded()), ("theirs", mamba2()))
    )
    note = f"next token as in float32 {ours:.3f}, transformers' Mamba2 {theirs:.3f}"
    record_property("note", note)
    assert ours >= 0.9


def test_bitsandbytes(tmp_path: Path, record_property) -> None:
    """bitsandbytes: load_in_8bit of the embedded model"""

    def quantize(model: PreTrainedModel, folder: Path) -> nn.Module:
        model.save_pretrained(folder)
        config = BitsAndBytesConfig(load_in_8bit=True)
        loaded = type(model).from_pretrained(folder, quantization_config=config, device_map="cpu")
        assert any(type(module) is bnb.nn.Linear8bitLt for module in loaded.modules())
        return loaded

    check_int8(quantize, tmp_path, record_property)


def test_torchao(tmp_path: Path, record_property) -> None:
    """torchao: Int8WeightOnlyConfig on the embedded model"""

    def quantize(model: PreTrainedModel, folder: Path) -> nn.Module:
        quantize_(model, Int8WeightOnlyConfig())
        assert any(isinstance(p, TorchAOBaseTensor) for p in model.parameters())
        return model

    check_int8(quantize, tmp_path, record_property)


def test_quantize_dynamic(tmp_path: Path, record_property) -> None:
    """torch: torch.ao.quantization.quantize_dynamic on the embedded model"""

    def quantize(model: PreTrainedModel, folder: Path) -> nn.Module:
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        if isinstance(model, Mamba2ForCausalLM):
            quantized.lm_head = model.lm_head  # whose weight it reads itself
        return quantized

    check_int8(quantize, tmp_path, record_property)
