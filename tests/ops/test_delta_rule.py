import pytest
import torch
from torch.nn.functional import normalize


def sequential(q, k, v, g, beta, state):
    """The recurrence as it is written down, token by token, in float64."""
    q, k, v, g, beta, state = (x.double() for x in (q, k, v, g, beta, state))
    out = []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None, None] * state
        recalled = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        error = beta[:, t, :, None] * (v[:, t] - recalled)
        state = state + k[:, t, :, :, None] * error[:, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(out, dim=1), state


def inputs(length, dtype=torch.float32):
    torch.manual_seed(length)
    q, k = (normalize(torch.randn(2, length, 3, 5), dim=-1) for _ in range(2))
    v, state = torch.randn(2, length, 3, 4), torch.randn(2, 3, 5, 4)
    g, beta = -torch.rand(2, length, 3), torch.rand(2, length, 3) * 2
    return [x.to(dtype) for x in (q, k, v, g, beta, state)]


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 500])
def test_equals_the_recurrence(op, length):
    args = inputs(length)
    o, state = op(*args)
    expected_o, expected_state = sequential(*args)
    torch.testing.assert_close(o.double(), expected_o, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state.double(), expected_state, atol=2e-5, rtol=2e-5)
    assert state.dtype == torch.float32


def test_calls_in_a_row_are_one_call(op):
    *args, state = inputs(150)
    expected, after = op(*args, state)
    out = []
    for part in torch.arange(150).split([1, 62, 1, 1, 32, 53]):
        o, state = op(*(x[:, part] for x in args), state)
        out.append(o)
    torch.testing.assert_close(torch.cat(out, dim=1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 70])
def test_a_token_without_decay_and_strength_leaves_the_state(op, length):
    q, k, v, g, beta, state = inputs(length)
    _, after = op(q, k, v, torch.zeros_like(g), torch.zeros_like(beta), state)
    assert torch.equal(after, state)


def test_padding_after_the_tokens_leaves_the_state(op):
    *args, state = inputs(70)
    args[3][:, 40:] = 0
    args[4][:, 40:] = 0
    _, after = op(*args, state)
    _, expected = op(*(x[:, :40] for x in args), state)
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("strength", [0, 1000], ids=["no decay", "strong decay"])
def test_extreme_decay_over_long_input_equals_the_recurrence(op, strength):
    """Strong at every other token: between them decay is weak, and known to all digits."""
    q, k, v, g, beta, state = inputs(500)
    g = g * torch.tensor([strength, min(strength, 1)]).repeat(250).view(-1, 1)
    args = (q, k, v, g, beta, state)
    o, after = op(*args)
    expected_o, expected_state = sequential(*args)
    torch.testing.assert_close(o.double(), expected_o, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(after.double(), expected_state, atol=2e-5, rtol=2e-5)


def test_a_key_that_comes_again_replaces_its_value(op):
    q, k, v, g, beta, state = inputs(33)
    k, q = k[:, :1].expand_as(k).contiguous(), k[:, :1].expand_as(q).contiguous()
    o, _ = op(q, k, v, torch.zeros_like(g), torch.ones_like(beta), state)
    torch.testing.assert_close(o, v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 67])
def test_gradients_are_those_of_the_recurrence(op, length):
    args = [x.requires_grad_() for x in inputs(length, torch.float64)]
    o, state = op(*args)
    got = torch.autograd.grad((o * o).sum() + state.sum(), args)
    o, state = sequential(*args)
    expected = torch.autograd.grad((o * o).sum() + state.sum(), args)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("length", [1, 67])
def test_gradients_of_zero_keys_and_a_zero_state_are_finite(op, length):
    q, k, v, g, beta, state = inputs(length)
    args = [q, k * 0, v, g * 1000, beta, state * 0]
    args = [x.requires_grad_() for x in args]
    o, after = op(*args)
    for x in torch.autograd.grad((o * o).sum() + after.sum(), args):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("length", [1, 67])
def test_half_inputs_are_accumulated_in_the_dtype_of_the_state(op, length):
    q, k, v, g, beta, state = inputs(length)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    o, after = op(q, k, v, g, beta, state)
    expected_o, expected_state = sequential(q, k, v, g, beta, state)
    assert (o.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(o, expected_o.bfloat16())
    torch.testing.assert_close(after.double(), expected_state, atol=2e-5, rtol=2e-5)
