import math

import pytest
import torch

from bmojo_neuron.ops.innovation import EPS


@pytest.mark.parametrize("length", [1, 3, 63])
def test_equals_the_definition(op, length):
    torch.manual_seed(0)
    f, weight, tail = torch.randn(2, length, 5), torch.randn(4, 5), torch.randn(2, 4, 5)
    score, predicted, extended = op(f, weight, tail)
    past = torch.cat([tail, f], dim=1).double()
    for b in range(2):
        for j in range(length):
            guess = sum(weight[m - 1].double() * past[b, 4 + j - m] for m in range(1, 5))
            error = (f[b, j].double() - guess).square().mean()
            size = f[b, j].double().square().mean() + guess.square().mean()
            torch.testing.assert_close(predicted[b, j].double(), guess, atol=1e-5, rtol=1e-5)
            assert score[b, j].item() == pytest.approx(
                math.log(error + EPS) - math.log(size + EPS), abs=1e-5
            )
    assert torch.equal(extended, torch.cat([tail, f], dim=1))


def test_the_score_is_bounded_and_free_of_scale(op):
    torch.manual_seed(0)
    f, weight, tail = torch.randn(1, 200, 8), torch.randn(4, 8), torch.randn(1, 4, 8)
    score, _, _ = op(f, weight, tail)
    larger, _, _ = op(f * 100, weight, tail * 100)
    assert score.max() <= math.log(2) + 1e-4  # |a - b|^2 <= 2 (|a|^2 + |b|^2)
    torch.testing.assert_close(score, larger, atol=1e-3, rtol=1e-3)


def test_what_was_announced_scores_lowest(op):
    f = torch.ones(1, 10, 4)
    weight = torch.zeros(4, 4)
    weight[0] = 1  # tomorrow is like today
    score, _, _ = op(f, weight, torch.zeros(1, 4, 4))
    assert score[0, 0] > -0.1  # the first token came out of nothing
    assert (score[0, 1:] < -10).all()
