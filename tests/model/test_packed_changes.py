"""Whatever is done to the weights of a packed model, it computes with the new ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.linear import MIN_ELEMENTS, PackedLinear, prepack
from tests.model.test_linear import logits, packed_names

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN"
)
SIZE = 512


def twins(tied: bool) -> tuple[BMojoForCausalLM, BMojoForCausalLM]:
    """A plain model and the same one packed."""
    torch.manual_seed(0)
    config = BMojoConfig.transformer(
        hidden_size=SIZE,
        intermediate_size=640,
        num_hidden_layers=1,
        num_attention_heads=8,
        vocab_size=800,
        tie_word_embeddings=tied,
        initializer_range=0.05,
    )
    plain = BMojoForCausalLM(config).eval()
    packed = copy.deepcopy(plain)
    prepack(packed)
    assert {"lm_head", "model.layers.0.mlp.gate_proj"} <= packed_names(packed)
    return plain, packed


def rows(count: int = 800) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.1 * torch.randn(count, SIZE, generator=generator)


def new_embedding(model: BMojoForCausalLM) -> None:
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows(), freeze=False))


def new_embedding_tied(model: BMojoForCausalLM) -> None:
    new_embedding(model)
    model.tie_weights()


def new_head(model: BMojoForCausalLM) -> None:
    head = nn.Linear(SIZE, 800, bias=False)
    head.weight = nn.Parameter(rows())
    model.set_output_embeddings(head)


def new_head_tied(model: BMojoForCausalLM) -> None:
    new_head(model)
    model.tie_weights()


def assigned(model: BMojoForCausalLM) -> None:
    model.lm_head.weight = nn.Parameter(rows())


def assigned_inside(model: BMojoForCausalLM) -> None:
    model.model.layers[0].mlp.gate_proj.weight = nn.Parameter(rows(640))


def registered(model: BMojoForCausalLM) -> None:
    model.lm_head.register_parameter("weight", nn.Parameter(rows()))


def put_as_accelerate_does(model: BMojoForCausalLM) -> None:
    model.lm_head._parameters["weight"] = nn.Parameter(rows())


def embedding_in_place(model: BMojoForCausalLM) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight[7] += 1


def embedding_loaded(model: BMojoForCausalLM) -> None:
    model.model.embed_tokens.load_state_dict({"weight": rows()})


def embedding_data(model: BMojoForCausalLM) -> None:
    model.model.embed_tokens.weight.data = rows()


CHANGES = (
    *(new_embedding, new_embedding_tied, new_head, new_head_tied, BMojoForCausalLM.tie_weights),
    *(assigned, assigned_inside, registered, put_as_accelerate_does),
    *(embedding_in_place, embedding_loaded, embedding_data),
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_packed_layer_never_goes_on_with_old_weights(
    change: Callable[[BMojoForCausalLM], None], tied: bool
) -> None:
    plain, packed = twins(tied)
    before = logits(plain)
    torch.testing.assert_close(logits(packed), before, rtol=1e-4, atol=1e-5)
    for model in (plain, packed):
        change(model)
    after = logits(plain)
    same = change is BMojoForCausalLM.tie_weights or (change is new_head_tied and tied)
    assert same or (after - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(packed), after, rtol=1e-4, atol=1e-5)
    saved = packed.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [808, 720])
def test_resized_after_packing(size: int, tied: bool) -> None:
    """Old ids keep their logits; new ones have those of the rows that transformers drew."""
    plain, packed = twins(tied)
    before = logits(plain)
    packed.resize_token_embeddings(size)
    after = logits(packed)
    head = packed.lm_head.weight
    kept = min(size, 800)
    assert after.shape == (1, size)
    assert head.shape == (size, SIZE)
    assert (head is packed.model.embed_tokens.weight) == tied
    torch.testing.assert_close(after[:, :kept], before[:, :kept], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        packed.lm_head.weight[kept - 1] = rows(1)[0]
    assert (logits(packed)[:, kept - 1] - after[:, kept - 1]).abs().max() > 1e-2
    if size > 800:
        hidden = packed.model(torch.arange(40).view(1, -1)).last_hidden_state[:, -1]
        torch.testing.assert_close(after[:, 800:], hidden @ head[800:].T, rtol=1e-4, atol=1e-5)
        assert after[:, 800:].abs().max() > 0
    prepack(packed)
    assert "lm_head" in packed_names(packed)
    assert SIZE * size > MIN_ELEMENTS


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_copies_of_a_changed_model_have_the_change(
    duplicate: Callable[[BMojoForCausalLM], BMojoForCausalLM],
) -> None:
    plain, packed = twins(tied=True)
    for model in (plain, packed):
        embedding_in_place(model)
    twin = duplicate(packed)
    assert isinstance(twin.lm_head, PackedLinear)
    torch.testing.assert_close(logits(twin), logits(plain), rtol=1e-4, atol=1e-5)
    assert isinstance(twin.lm_head, PackedLinear), "a copy is as good as new"


def test_an_unchanged_layer_stays_packed() -> None:
    _, packed = twins(tied=True)
    names = packed_names(packed)
    logits(packed)
    logits(packed)
    assert packed_names(packed) == names
