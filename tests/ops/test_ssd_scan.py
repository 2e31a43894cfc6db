import pytest
import torch


def sequential(x, dt, a, b, c, state):
    """The recurrence as it is written down, token by token, in float64."""
    x, dt, a, b, c, state = (v.double() for v in (x, dt, a, b, c, state))
    out = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        out.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
    return torch.stack(out, dim=1), state


def inputs(length, dtype=torch.float32):
    torch.manual_seed(length)
    x, b, c = (
        torch.randn(2, length, 3, 4),
        torch.randn(2, length, 3, 5),
        torch.randn(2, length, 3, 5),
    )
    dt, a = torch.rand(2, length, 3) * 0.5, -torch.rand(3) * 4 - 0.1
    state = torch.randn(2, 3, 4, 5)
    return [v.to(dtype) for v in (x, dt, a, b, c, state)]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 500])
def test_equals_the_recurrence(op, length):
    args = inputs(length)
    y, state = op(*args)
    expected_y, expected_state = sequential(*args)
    torch.testing.assert_close(y.double(), expected_y, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state.double(), expected_state, atol=2e-5, rtol=2e-5)
    assert state.dtype == torch.float32


def test_a_token_without_step_leaves_the_state(op):
    x, dt, a, b, c, state = inputs(70)
    dt[:, 40:] = 0
    _, after = op(x, dt, a, b, c, state)
    _, expected = op(x[:, :40], dt[:, :40], a, b[:, :40], c[:, :40], state)
    torch.testing.assert_close(after, expected)


def test_strong_decay_over_long_input_stays_finite(op):
    x, dt, a, b, c, state = inputs(500)
    y, after = op(x, dt * 100, a * 100, b, c, state)
    assert torch.isfinite(y).all()
    assert torch.isfinite(after).all()


def test_gradients_are_those_of_the_recurrence(op):
    args = [v.requires_grad_() for v in inputs(67)]
    y, state = op(*args)
    got = torch.autograd.grad((y * y).sum() + state.sum(), args)
    y, state = sequential(*args)
    expected = torch.autograd.grad((y * y).sum() + state.sum(), args)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, atol=1e-3, rtol=1e-3)
