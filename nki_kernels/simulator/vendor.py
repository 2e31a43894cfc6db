"""The vendor's own simulator in place of this one: the same kernels through `nki.simulate`.

The source lint still applies. There is no ledger, and the vendor checks fewer rules.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nki_kernels.simulator.context import MARK, Session, environment
from nki_kernels.simulator.errors import NkiInstallError


def run(
    function: Any,
    grid: tuple[int, ...],
    session: Session,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """`nki.simulate(kernel[grid])(...)` of the vendor's package."""
    nki: Any = sys.modules.get("nki")
    if nki is None or getattr(nki, MARK, False):
        raise NkiInstallError(
            "backend: expected the vendor's nki for 'vendor', got the simulator; "
            "call simulator.install(backend='vendor') before the kernel is imported"
        )
    kernel = function if hasattr(function, "__getitem__") else nki.jit(function)
    if grid:
        kernel = kernel[grid[0] if len(grid) == 1 else grid]
    with environment(session):
        return nki.simulate(kernel)(*args, **kwargs)
