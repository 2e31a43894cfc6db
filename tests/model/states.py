"""Comparing states: bit for bit, or within the rounding of float32 (positions exactly)."""

import torch

from bmojo_neuron.state import State

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def assert_same(a: State, b: State) -> None:
    """Bit for bit, and nothing missing."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_close(a: State, b: State) -> None:
    """Within float32 rounding; capacities may differ, empty room is not compared."""
    assert a.keys() == b.keys()
    for name in a:
        x, y = a[name], b[name]
        if x.shape != y.shape:
            room = min(x.shape[2], y.shape[2])
            x, y = x[:, :, :room], y[:, :, :room]
        if not x.is_floating_point():
            assert torch.equal(x, y), name
        else:
            torch.testing.assert_close(x, y, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
