"""Dropout that leaves nothing behind, the scores that select, and the loss that moves them."""

import math

import pytest
import torch
from torch import Tensor

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.eidetic import EideticMemory
from bmojo_neuron.training.losses import dropout, scores, selection_loss
from tests.training.conftest import tiny_model


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def loss_of(score: list[list[float]], values: list[list[int]]) -> Tensor:
    is_value = torch.zeros(len(score), len(score[0]), dtype=torch.bool)
    for row, places in enumerate(values):
        is_value[row, places] = True
    return selection_loss(torch.tensor(score, dtype=torch.float64), is_value)


TEN = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("place", [0, 8, 9])
def test_selection_loss_by_hand(place: int) -> None:
    """The threshold stands at 1.0; 0.3 = margin = temperature."""
    value = softplus((0.3 - (TEN[place] - 1)) / 0.3)
    others = [softplus((0.3 + x - 1) / 0.3) for i, x in enumerate(TEN) if i != place]
    assert loss_of([TEN], [[place]]).item() == pytest.approx(value + 4 * sum(others) / 9)


def test_what_is_told_apart_is_left_in_peace() -> None:
    """Filler well below the threshold is not driven on down, which would end the fading memory."""
    score = torch.tensor([[4.0, -3.0, -3.0]], requires_grad=True)
    selection_loss(score, torch.tensor([[True, False, False]])).backward()
    assert score.grad is not None
    assert score.grad.abs().max() < 1e-3


def test_rows_without_values_do_not_count() -> None:
    alone = loss_of([TEN], [[0]])
    assert loss_of([[100.0] * 10, TEN, [-5.0] * 10], [[], [0], []]).item() == alone.item()
    score = torch.tensor([TEN], requires_grad=True)
    none = selection_loss(score, torch.zeros(1, 10, dtype=torch.bool))
    assert (none.shape, none.item()) == ((), 0.0)


def test_values_are_drawn_up_and_filler_down() -> None:
    score = torch.tensor([TEN, TEN], requires_grad=True)
    is_value = torch.zeros(2, 10, dtype=torch.bool)
    is_value[0, [0, 9]] = is_value[1, 4] = True
    selection_loss(score, is_value).backward()
    assert score.grad is not None
    assert (score.grad[is_value] < 0).all()
    assert (score.grad[~is_value] > 0).all()
    assert score.grad[0, 9] < 10 * score.grad[0, 0]  # what is below more than what is held
    assert score.grad[1, 1] > 2 * score.grad[1, 9]  # what is let in more than what is not


@pytest.fixture
def model() -> BMojoForCausalLM:
    return tiny_model()


IDS = torch.randint(0, 1200, (2, 70), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_dropout_leaves_nothing_behind(model: BMojoForCausalLM) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    expected = model(IDS, use_cache=False).logits
    with dropout(model, 0.0):
        assert hooks() == 5  # the embedding, two layers, two MLPs
        assert torch.equal(model(IDS, use_cache=False).logits, expected)
    with pytest.raises(RuntimeError, match="stopped"), dropout(model, 0.5):
        raise RuntimeError("stopped")
    assert hooks() == 0
    assert torch.equal(model(IDS, use_cache=False).logits, expected)


@torch.no_grad()
def test_dropout_drops_the_share_of_each_place(model: BMojoForCausalLM) -> None:
    seen: dict[str, float] = {}

    def look(name: str):
        def keep(_: object, __: object, y: Tensor | tuple[Tensor, ...]) -> None:
            y = y[0] if isinstance(y, tuple) else y
            seen[name] = (y == 0).float().mean().item()

        return keep

    with dropout(model, 0.25):
        places = {"embedding": model.model.embed_tokens}
        for i, block in enumerate(model.model.layers):
            places |= {f"layer {i}": block.layer, f"mlp {i}": block.mlp}
        added = [place.register_forward_hook(look(name)) for name, place in places.items()]
        torch.manual_seed(0)
        first = model(IDS, use_cache=False).logits
        torch.manual_seed(0)
        again = model(IDS, use_cache=False).logits
        other = model(IDS, use_cache=False).logits
    for hook in added:
        hook.remove()
    assert seen == pytest.approx(dict.fromkeys(places, 0.25), abs=0.03)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("score_bias", [True, False])
def test_scores_are_what_memory_itself_scored(
    score_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(eidetic_score_bias=score_bias).train()
    own, original = [], EideticMemory.score

    def spied(self: EideticMemory, *args: Tensor) -> tuple[Tensor, ...]:
        out = original(self, *args)
        own.append(out[0])
        return out

    monkeypatch.setattr(EideticMemory, "score", spied)
    with scores(model) as found:
        model.model.full(IDS)
        _, state = model.model.feed(IDS[:, :9], model.new_state(2))
        model.model.feed(IDS[:, 9:16], state)
    ((whole, first, second),) = found
    assert [one.shape for one in (whole, first, second)] == [(2, 70), (2, 9), (2, 7)]
    assert len(own) == 6  # by the hook and by memory
    assert all(torch.equal(one, twin) for one, twin in zip(own[::2], own[1::2], strict=True))
    torch.testing.assert_close(torch.cat([first, second], 1), whole[:, :16], atol=1e-4, rtol=1e-4)
    model.model.full(IDS)
    assert len(found[0]) == 3
    assert not any(len(module._forward_pre_hooks) for module in model.modules())


def test_the_selection_loss_reaches_the_layers_that_write_the_fading_output(
    model: BMojoForCausalLM,
) -> None:
    model.train()
    is_value = torch.zeros(2, 70, dtype=torch.bool)
    is_value[:, [10, 11, 30]] = True
    with scores(model) as found:
        model.model.full(IDS)
    selection_loss(found[0][0], is_value).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert "model.embed_tokens.weight" in moved
    assert any(name.startswith("model.layers.1.layer") for name in moved)
