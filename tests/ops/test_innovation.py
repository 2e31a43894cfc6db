import math

import pytest
import torch

from bmojo_neuron.ops.innovation import EPS, running_mean

TAU = 32.0
UNIT = torch.tensor([0.3])


def state(batch, width, dtype=torch.float32):
    return torch.randn(batch, 4, width, dtype=dtype), torch.rand(batch, dtype=dtype) + 0.5


@pytest.mark.parametrize("length", [1, 3, 63, 200])
def test_equals_the_definition(op, length):
    torch.manual_seed(0)
    f, weight = torch.randn(2, length, 5), torch.randn(4, 5)
    tail, running = state(2, 5)
    score, predicted, extended, means = op(f, weight, tail, running, UNIT, TAU)
    past = torch.cat([tail, f], dim=1).double()
    for b in range(2):
        mean = running[b].double() * UNIT[0].double()
        for j in range(length):
            guess = sum(weight[m - 1].double() * past[b, 4 + j - m] for m in range(1, 5))
            error = (f[b, j].double() - guess).square().mean()
            torch.testing.assert_close(predicted[b, j].double(), guess, atol=1e-5, rtol=1e-5)
            assert score[b, j].item() == pytest.approx(
                math.log(error + EPS) - math.log(mean + EPS), abs=1e-5
            )
            assert means[b, j].item() == pytest.approx((mean / UNIT[0]).item(), rel=1e-5)
            mean = mean + (error - mean) / TAU
        assert means[b, length].item() == pytest.approx((mean / UNIT[0]).item(), rel=1e-5)
    assert torch.equal(extended, torch.cat([tail, f], dim=1))


@pytest.mark.parametrize("cuts", [[1] * 150, [64, 64, 22], [7, 100, 43]])
def test_cut_anywhere_the_scores_are_the_same(op, cuts):
    torch.manual_seed(0)
    f, weight = torch.randn(2, 150, 5), torch.randn(4, 5)
    tail, running = state(2, 5)
    whole, _, _, means = op(f, weight, tail, running, UNIT, TAU)
    parts = []
    for piece in f.split(cuts, dim=1):
        score, _, extended, after = op(piece, weight, tail, running, UNIT, TAU)
        tail, running = extended[:, -4:], after[:, -1]
        parts.append(score)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(running, means[:, -1], atol=1e-5, rtol=1e-5)


def test_the_score_comes_to_be_free_of_scale(op):
    """Whatever the size of f, after some time constants the average surprise scores about 0."""
    torch.manual_seed(0)
    f, weight, tail = torch.randn(1, 4000, 8), torch.randn(4, 8), torch.zeros(1, 4, 8)
    late = [op(x, weight, tail, torch.ones(1), UNIT, TAU)[0][:, 1000:] for x in (f, f * 100)]
    torch.testing.assert_close(*late, atol=1e-3, rtol=1e-3)
    assert abs(late[0].exp().mean() - 1) < 0.1


def test_a_surprise_scores_by_how_rare_it_is(op):
    """The same jump scores high in a calm stretch and low in a wild one."""
    torch.manual_seed(0)
    noise = torch.randn(2, 1000, 8) * torch.tensor([0.1, 3.0]).view(2, 1, 1)
    noise[:, -1] = 2.0
    weight = torch.zeros(4, 8)
    score = op(noise, weight, torch.zeros(2, 4, 8), torch.ones(2), UNIT, TAU)[0][:, -1]
    assert score[0] > math.log(100)
    assert score[1] < 0


def test_what_was_announced_scores_lowest(op):
    f = torch.ones(1, 10, 4)
    weight = torch.zeros(4, 4)
    weight[0] = 1  # tomorrow is like today
    score = op(f, weight, torch.zeros(1, 4, 4), torch.ones(1), UNIT, TAU)[0]
    assert score[0, 0] > 1  # the first token came out of nothing
    assert (score[0, 1:] < -10).all()


def test_the_average_has_the_gradient_of_the_recurrence():
    x = torch.rand(2, 70, dtype=torch.float64, requires_grad=True)
    start = torch.rand(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, r: running_mean(x, r, 8.0), (x, start))
