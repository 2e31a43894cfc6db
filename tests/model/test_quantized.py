"""Quantizers put their own module in each linear layer's place: nothing reads past its forward."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.model import default_model_path
from bmojo_neuron.training.corpus import load_corpus
from tests.model.conftest import random_ids, tiny_model


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (out, in), and the scale of each row (out, 1)."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """y = x W^T + b, W rounded to int8 by rows; it has no `weight` for anyone to read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.int8, self.scale = rounded(linear.weight.detach())
        self.bias = linear.bias
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.linear(x, self.int8 * self.scale, self.bias)


def quantize(model: nn.Module) -> list[Int8Linear]:
    """Replace every linear layer, in place; returns those that took their place."""
    replaced = []
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                replaced.append(Int8Linear(child))
                setattr(parent, name, replaced[-1])
    return replaced


def outputs(model: BMojoForCausalLM) -> dict[str, Any]:
    """Logits in the full form, and of a prompt and one token at a time after it."""
    ids = random_ids(2, 30)
    whole = model(ids, use_cache=False).logits
    first = model(ids[:, :20], use_cache=True)
    cache = getattr(first, "cache", None) or first.past_key_values
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(20, 30)]
    return {"whole": whole, "in steps": torch.cat([first.logits, *steps], dim=1)}


@torch.no_grad()
def test_int8_layers_give_what_their_rounded_weights_give(kind: str) -> None:
    quantized, plain = (tiny_model(kind, tie_word_embeddings=False) for _ in range(2))
    untouched = outputs(plain)
    layers = quantize(quantized)
    for module in plain.modules():
        if isinstance(module, nn.Linear):
            int8, scale = rounded(module.weight)
            module.weight.copy_(int8 * scale)
    got, expected = outputs(quantized), outputs(plain)
    for form, logits in got.items():
        torch.testing.assert_close(logits, expected[form], msg=lambda text, form=form: form + text)
        assert not torch.equal(logits, untouched[form])
    assert all(layer.calls for layer in layers)


@torch.no_grad()
def test_the_embedded_model_says_the_same_in_int8() -> None:
    model = AutoModelForCausalLM.from_pretrained(default_model_path())
    ids = heldout_ids()
    expected = model(ids).logits.argmax(-1)
    quantize(model)
    assert (model(ids).logits.argmax(-1) == expected).float().mean() >= 0.9


def text_ids(part: str, rows: int, length: int) -> Tensor:
    """The beginning of the Bible's "train" or "heldout" part, (rows, length)."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_path())
    text = "".join(getattr(load_corpus()["bible"], part))[: 8 * rows * length]
    ids = tokenizer(text).input_ids
    return torch.tensor(ids[: rows * length]).view(rows, length)


def heldout_ids() -> Tensor:
    """Text that the embedded model was not trained on, (4, 128)."""
    return text_ids("heldout", rows=4, length=128)
