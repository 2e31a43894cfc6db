import pytest
import torch
from torch.nn.functional import normalize

RIDGE, NUM_ITER = 0.02, 30


def sequential(q, k, v, g, g_kk, alpha, kk, kv, ridge=RIDGE, num_iter=NUM_ITER):
    """The recurrence as it is written down, token by token, in float64."""
    args = (q, k, v, g, g_kk, alpha, kk, kv)
    q, k, v, g, g_kk, alpha, kk, kv = (x.double() for x in args)
    out = []
    for t in range(q.shape[1]):
        key = k[:, t, :, :, None]
        kk = g_kk[:, t].exp()[..., None, None] * kk + key * k[:, t, :, None]
        kv = g[:, t].exp()[..., None, None] * kv + key * v[:, t, :, None]
        x = chebyshev(kk, q[:, t].unsqueeze(-1), ridge, num_iter).squeeze(-1)
        mixed = q[:, t] + alpha[:, t, :, None] * (x - q[:, t])
        out.append(torch.einsum("bhkv,bhk->bhv", kv, mixed))
    return torch.stack(out, dim=1), kk, kv


def chebyshev(kk, q, ridge, num_iter):
    f = torch.linalg.matrix_norm(kk, keepdim=True)
    zero, f = f == 0, torch.where(f == 0, 1.0, f)
    lam = ridge * f
    step, rho = 2 / (2 * lam + f), f / (2 * lam + f)
    before, x, omega = torch.zeros_like(q), step * q, 2.0
    if num_iter == 0:
        return q
    for _ in range(num_iter):
        omega = 1 / (1 - rho**2 / 4 * omega)
        residual = kk @ x + lam * x - q
        before, x = x, omega * (x - step * residual) + (1 - omega) * before
    return torch.where(zero, 0.0, x)


def inputs(length, dtype=torch.float32):
    torch.manual_seed(length)
    q, k = (normalize(torch.randn(2, length, 3, 5), dim=-1) for _ in range(2))
    k = k * torch.rand(2, length, 3, 1)
    v, kv, root = torch.randn(2, length, 3, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 5)
    g, g_kk, alpha = -torch.rand(2, length, 3), -torch.rand(2, length, 3), torch.rand(2, length, 3)
    kk = root @ root.transpose(-1, -2) / 5
    return [x.to(dtype) for x in (q, k, v, g, g_kk, alpha, kk, kv)]


def assert_close(got, expected, tolerance=5e-5):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 500])
def test_equals_the_recurrence(op, length):
    args = inputs(length)
    o, kk, kv = op(*args, RIDGE, NUM_ITER)
    assert_close((o, kk, kv), sequential(*args))
    assert kk.dtype == kv.dtype == torch.float32


@pytest.mark.parametrize("num_iter", [0, 1, 2, 30])
@pytest.mark.parametrize("length", [1, 50])
def test_the_number_of_iterations_is_part_of_the_model(op, length, num_iter):
    args = inputs(length)
    o, kk, kv = op(*args, RIDGE, num_iter)
    assert_close((o, kk, kv), sequential(*args, num_iter=num_iter))
    more, _, _ = op(*args, RIDGE, num_iter + 1)
    assert not torch.allclose(o, more, atol=1e-4)


@pytest.mark.parametrize("length", [1, 50])
def test_without_iterations_the_query_reads_as_it_is(op, length):
    q, k, v, g, g_kk, alpha, kk, kv = inputs(length)
    o, _, _ = op(q, k, v, g, g_kk, alpha, kk, kv, RIDGE, 0)
    plain, _, _ = op(q, k, v, g, g_kk, torch.zeros_like(alpha), kk, kv, RIDGE, NUM_ITER)
    torch.testing.assert_close(o, plain)


@pytest.mark.parametrize("length", [1, 50])
def test_many_iterations_solve_the_ridge_regression(op, length):
    q, k, v, g, g_kk, alpha, kk, kv = inputs(length, torch.float64)
    o, _, _ = op(q, k, v, g, g_kk, torch.ones_like(alpha), kk, kv, 0.1, 300)
    expected = []
    for t in range(length):
        key = k[:, t, :, :, None]
        kk = g_kk[:, t].exp()[..., None, None] * kk + key * k[:, t, :, None]
        kv = g[:, t].exp()[..., None, None] * kv + key * v[:, t, :, None]
        lam = 0.1 * torch.linalg.matrix_norm(kk, keepdim=True)
        x = torch.linalg.solve(kk + lam * torch.eye(5, dtype=kk.dtype), q[:, t])
        expected.append(torch.einsum("bhkv,bhk->bhv", kv, x))
    torch.testing.assert_close(o, torch.stack(expected, dim=1), atol=1e-10, rtol=1e-10)


def test_calls_in_a_row_are_one_call(op):
    *args, kk, kv = inputs(150)
    expected = op(*args, kk, kv, RIDGE, NUM_ITER)
    out = []
    for part in torch.arange(150).split([1, 62, 1, 1, 32, 53]):
        o, kk, kv = op(*(x[:, part] for x in args), kk, kv, RIDGE, NUM_ITER)
        out.append(o)
    assert_close((torch.cat(out, dim=1), kk, kv), expected)


@pytest.mark.parametrize("length", [1, 70])
def test_a_token_without_decay_key_and_value_leaves_the_states(op, length):
    q, k, v, g, _, alpha, kk, kv = inputs(length)
    none = torch.zeros_like(g)
    _, *after = op(q, k * 0, v * 0, none, none, alpha, kk, kv, RIDGE, NUM_ITER)
    assert torch.equal(after[0], kk)
    assert torch.equal(after[1], kv)


def test_padding_after_the_tokens_leaves_the_states(op):
    *args, kk, kv = inputs(70)
    for x in args[1:5]:
        x[:, 40:] = 0
    _, *after = op(*args, kk, kv, RIDGE, NUM_ITER)
    _, *expected = op(*(x[:, :40] for x in args), kk, kv, RIDGE, NUM_ITER)
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("strength", [0, 1000], ids=["no decay", "strong decay"])
def test_extreme_decay_over_long_input_equals_the_recurrence(op, strength):
    """Strong at every other token: between them decay is weak, and known to all digits."""
    q, k, v, g, _, alpha, kk, kv = inputs(500)
    g = g * torch.tensor([strength, min(strength, 1)]).repeat(250).view(-1, 1)
    args = (q, normalize(k, dim=-1), v, g, g, alpha, kk, kv)
    assert_close(op(*args, RIDGE, NUM_ITER), sequential(*args), 1e-4)


@pytest.mark.parametrize("length", [1, 67])
def test_a_state_of_zero_has_the_solution_zero(op, length):
    q, k, v, g, g_kk, alpha, kk, kv = inputs(length)
    ones = torch.ones_like(alpha)
    o, after, _ = op(q, k * 0, v, g, g_kk, ones, kk * 0, kv, RIDGE, NUM_ITER)
    assert torch.equal(o, torch.zeros_like(o))
    assert torch.equal(after, torch.zeros_like(kk))


@pytest.mark.parametrize("length", [1, 67])
def test_gradients_are_those_of_the_recurrence(op, length):
    args = [x.requires_grad_() for x in inputs(length, torch.float64)]
    assert_close(gradients(op, args), gradients(sequential, args), 1e-8)


@pytest.mark.parametrize("length", [1, 67])
def test_gradients_of_zero_keys_and_zero_states_are_those_of_the_recurrence(op, length):
    q, k, v, g, g_kk, alpha, kk, kv = inputs(length)
    k[:, : length - length // 4] = 0  # the first keys come after the first chunk
    args = [x.requires_grad_() for x in (q, k, v, g, g_kk, alpha, kk * 0, kv * 0)]
    got = gradients(op, args)
    assert all(torch.isfinite(x).all() for x in got)
    if length > 1:
        assert_close(got[:6], gradients(sequential, args)[:6], 1e-3)


def test_gradients_stay_finite_while_the_states_fade(op):
    """f falls to e^-33, where the gradient of 1 / sqrt(f^2) by itself is no float32 any more."""
    q, k, v, g, _, alpha, kk, kv = inputs(67)
    g = torch.full_like(g, -0.5)
    args = [x.requires_grad_() for x in (q, k * 0, v, g, g.clone(), alpha, kk, kv)]
    got, expected = gradients(op, args), gradients(sequential, args)
    for i in (0, 3, 4, 5, 7):
        torch.testing.assert_close(got[i], expected[i], atol=1e-3, rtol=1e-3)
    assert all(torch.isfinite(x).all() for x in got)


def gradients(function, args):
    o, kk, kv = function(*args, RIDGE, NUM_ITER)
    return torch.autograd.grad((o * o).sum() + kk.square().sum() + kv.sum(), args)


@pytest.mark.parametrize("length", [1, 67])
def test_half_inputs_are_accumulated_in_the_dtype_of_the_state(op, length):
    q, k, v, *rest = inputs(length)
    args = (q.bfloat16(), k.bfloat16(), v.bfloat16(), *rest)
    o, *after = op(*args, RIDGE, NUM_ITER)
    expected, *states = sequential(*args)
    assert (o.dtype, after[0].dtype, after[1].dtype) == (torch.bfloat16, *2 * [torch.float32])
    torch.testing.assert_close(o, expected.bfloat16())
    assert_close(after, states, 2e-5)
