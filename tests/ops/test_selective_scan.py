import pytest
import torch


def sequential(x, dt, a, b, c, state):
    """The recurrence as it is written down, token by token, in float64."""
    x, dt, a, b, c, state = (v.double() for v in (x, dt, a, b, c, state))
    out = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * a)
        state = decay * state + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        out.append(torch.einsum("ben,bn->be", state, c[:, t]))
    return torch.stack(out, dim=1), state


def inputs(length, dtype=torch.float32):
    torch.manual_seed(length)
    x, dt = torch.randn(2, length, 7), torch.rand(2, length, 7) * 0.5
    b, c = torch.randn(2, length, 5), torch.randn(2, length, 5)
    a, state = -torch.rand(7, 5) * 4 - 0.1, torch.randn(2, 7, 5)
    return [v.to(dtype) for v in (x, dt, a, b, c, state)]


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 500])
def test_equals_the_recurrence(op, length):
    args = inputs(length)
    y, state = op(*args)
    expected_y, expected_state = sequential(*args)
    torch.testing.assert_close(y.double(), expected_y, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state.double(), expected_state, atol=2e-5, rtol=2e-5)
    assert state.dtype == torch.float32


def test_calls_in_a_row_are_one_call(op):
    x, dt, a, b, c, state = inputs(150)
    expected, after = op(x, dt, a, b, c, state)
    out = []
    for part in torch.arange(150).split([1, 62, 1, 1, 32, 53]):
        y, state = op(x[:, part], dt[:, part], a, b[:, part], c[:, part], state)
        out.append(y)
    torch.testing.assert_close(torch.cat(out, dim=1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 70])
def test_a_token_without_step_leaves_the_state(op, length):
    x, dt, a, b, c, state = inputs(length)
    _, after = op(x, torch.zeros_like(dt), a, b, c, state)
    assert torch.equal(after, state)


def test_padding_after_the_tokens_leaves_the_state(op):
    x, dt, a, b, c, state = inputs(70)
    dt[:, 40:] = 0
    _, after = op(x, dt, a, b, c, state)
    _, expected = op(x[:, :40], dt[:, :40], a, b[:, :40], c[:, :40], state)
    torch.testing.assert_close(after, expected)


def test_strong_decay_over_long_input_equals_the_recurrence(op):
    x, dt, a, b, c, state = inputs(500)
    y, after = op(x, dt * 100, a * 100, b, c, state)
    expected_y, expected_state = sequential(x, dt * 100, a * 100, b, c, state)
    torch.testing.assert_close(y.double(), expected_y, atol=2e-4, rtol=2e-5)
    torch.testing.assert_close(after.double(), expected_state, atol=2e-4, rtol=2e-5)


def test_without_decay_nothing_is_forgotten(op):
    x, dt, a, b, c, state = inputs(500)
    _, after = op(x, dt, torch.zeros_like(a), b, c, state)
    expected = state.double() + torch.einsum("bte,btn->ben", (dt * x).double(), b.double())
    torch.testing.assert_close(after.double(), expected, atol=5e-5, rtol=2e-5)


@pytest.mark.parametrize("length", [1, 67])
def test_gradients_are_those_of_the_recurrence(op, length):
    args = [v.requires_grad_() for v in inputs(length, torch.float64)]
    y, state = op(*args)
    got = torch.autograd.grad((y * y).sum() + state.sum(), args)
    y, state = sequential(*args)
    expected = torch.autograd.grad((y * y).sum() + state.sum(), args)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("length", [1, 67])
def test_half_inputs_are_accumulated_in_the_dtype_of_the_state(op, length):
    x, dt, a, b, c, state = inputs(length)
    x, b, c = x.bfloat16(), b.bfloat16(), c.bfloat16()
    y, after = op(x, dt, a, b, c, state)
    expected_y, expected_state = sequential(x, dt, a, b, c, state)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, expected_y.bfloat16())
    torch.testing.assert_close(after.double(), expected_state, atol=2e-5, rtol=2e-5)
