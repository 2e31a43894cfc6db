"""The ops of the model: defined here, run elsewhere by modules of the same name in kernel packages.

A backend is chosen once, before a model is built or traced: `load_ops` returns a frozen set that
the model holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

BACKENDS = {"torch": "bmojo_neuron.ops", "triton": "cuda_kernels", "nki": "nki_kernels"}


@dataclass(frozen=True)
class Ops:
    """One callable per op, named as its module; see the modules for the contracts."""

    causal_conv: Callable[..., tuple[Tensor, Tensor]]
    ssd_scan: Callable[..., tuple[Tensor, Tensor]]
    selective_scan: Callable[..., tuple[Tensor, Tensor]]
    delta_rule: Callable[..., tuple[Tensor, Tensor]]
    kalman_scan: Callable[..., tuple[Tensor, Tensor, Tensor]]
    innovation: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    selection: Callable[..., tuple[Tensor, Tensor]]
    memory_attention: Callable[..., Tensor]


def load_ops(backend: str = "torch") -> Ops:
    """Import every op of one backend.

    Raises:
        ValueError: no such backend.
        NotImplementedError: the backend lacks kernels; the message lists them.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    package, names = BACKENDS[backend], [field.name for field in fields(Ops)]
    missing = [name for name in names if find_spec(f"{package}.{name}") is None]
    if missing:
        raise NotImplementedError(
            f"backend {backend!r} has no kernel for {', '.join(missing)} ({package}); "
            "use backend='torch'"
        )
    ops = {name: getattr(import_module(f"{package}.{name}"), name) for name in names}
    return Ops(**{name: OutsideAutocast(op) for name, op in ops.items()})


@dataclass(frozen=True)
class OutsideAutocast:
    """`op` in the dtypes that its contract names, whatever autocast is on around it."""

    op: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        device = _first_tensor(args).device.type
        if not torch.is_autocast_enabled(device):
            return self.op(*args)
        with torch.autocast(device, enabled=False):
            return self.op(*args)


def _first_tensor(args: Any) -> Tensor:
    while not isinstance(args, Tensor):
        args = args[0]
    return args
