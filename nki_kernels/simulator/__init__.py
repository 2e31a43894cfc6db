"""Run NKI kernels on numpy arrays on any CPU, refuse what the hardware refuses, say what it costs.

nki = simulator.install()           # `import nki, nki.language as nl, nki.isa as nisa` work now
out = kernel(x, w)                  # a function under @nki.jit, on numpy arrays
with simulator.session(target="trn2", nki="0.7", strict=True) as run:
    kernel(x, w)
run.ledger.events                   # what was executed
"""

from nki_kernels.simulator.context import Session, session
from nki_kernels.simulator.errors import (
    NkiError,
    NkiInstallError,
    NkiNotSimulated,
    NkiValidationError,
    NkiWarning,
)
from nki_kernels.simulator.install import install, uninstall
from nki_kernels.simulator.kernel import jit, simulate

__all__ = ["NkiError", "NkiInstallError", "NkiNotSimulated", "NkiValidationError", "NkiWarning"]
__all__ += ["Session", "install", "jit", "session", "simulate", "uninstall"]
