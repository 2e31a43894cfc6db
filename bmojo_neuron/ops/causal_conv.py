"""Depthwise causal convolution over time with a carried tail, then SiLU: what precedes a scan.

Letters: B batch, T tokens, E channels, K taps.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor
) -> tuple[Tensor, Tensor]:
    """y_t = silu(bias + sum_k weight[:, k] * x_{t-K+1+k}); x before this call comes from `tail`.

    Args:
        x: (B, T, E) inputs.
        weight: (E, K), newest tap last.
        bias: (E,) or None.
        tail: (B, K-1, E), the inputs before x, newest last; zeros at the start of a sequence.

    Returns:
        y (B, T, E), and `extended` (B, K-1+T, E) = tail followed by x, from which the caller takes
        the next tail (the K-1 rows that end at its last valid token).
    """
    taps, length = weight.shape[1], x.shape[1]
    extended = torch.cat([tail.to(x.dtype), x], dim=1)  # (B, K-1+T, E)
    if length == 1:
        y = (extended * weight.t()).sum(1, keepdim=True)
        return silu(y if bias is None else y + bias), extended
    y = extended[:, :length] * weight[:, 0]
    if bias is not None:
        y = y + bias
    for k in range(1, taps):
        y = torch.addcmul(y, extended[:, k : k + length], weight[:, k])
    return silu(y), extended
