import pytest
import torch
from torch.nn.functional import conv1d, silu


@pytest.mark.parametrize("length", [1, 2, 63])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_a_padded_convolution(op, length, with_bias):
    torch.manual_seed(0)
    x, tail = torch.randn(2, length, 5), torch.randn(2, 3, 5)
    weight, bias = torch.randn(5, 4), torch.randn(5) if with_bias else None
    y, extended = op(x, weight, bias, tail)

    truth = torch.cat([tail, x], dim=1).double()
    expected = conv1d(
        truth.transpose(1, 2),
        weight.double().unsqueeze(1),
        None if bias is None else bias.double(),
        groups=5,
    )
    torch.testing.assert_close(y.double(), silu(expected).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(extended, torch.cat([tail, x], dim=1))
