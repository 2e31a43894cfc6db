"""`install()`: make `import nki, nki.language as nl, nki.isa as nisa` find the simulator."""

import importlib
import importlib.util
import sys
import types
from typing import Any

from nki_kernels.simulator import context, dtypes, isa, kernel, language, nki_typing
from nki_kernels.simulator.context import MARK, VERSIONS
from nki_kernels.simulator.errors import NkiError, NkiInstallError, NkiValidationError
from nki_kernels.simulator.tensor import NkiTensor


def _module(name: str, members: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name, "Of the NKI simulator.")
    module.__dict__.update(members)
    return module


def modules() -> dict[str, types.ModuleType]:
    """The modules by the name under which kernels import them."""
    kinds = {dtype.name: dtype for dtype in dtypes.ALL + dtypes.PACKED}
    enums = {name: getattr(isa, name) for name in dir(isa.enums) if not name.startswith("_")
             and hasattr(isa, name)}  # fmt: skip
    found = {
        "nki.language": language,
        "nki.isa": isa,
        "nki.isa.constants": _module("nki.isa.constants", enums),
        "nki.dtype": _module("nki.dtype", kinds),
        "nki.typing": nki_typing,
        "nki.collectives": _module(
            "nki.collectives", {"__getattr__": isa.not_simulated.collective}
        ),
    }
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        if parent in found:  # `from nki.isa import constants`
            setattr(found[parent], child, module)
    root = {name.split(".")[1]: module for name, module in found.items() if name.count(".") == 1}
    root |= {"jit": kernel.jit, "simulate": kernel.simulate, "tensor": NkiTensor}  # type: ignore[dict-item]
    root |= {"NkiError": NkiError, "NkiValidationError": NkiValidationError}  # type: ignore[dict-item]
    root |= {"__version__": VERSIONS[-1], "__path__": [], MARK: True}  # type: ignore[dict-item]
    return {"nki": _module("nki", root), **found}


def installed() -> bool:
    """Whether `nki` is the simulator now."""
    return getattr(sys.modules.get("nki"), MARK, False)


def real_installation() -> str | None:
    """Where a vendor's `nki` lies that can be imported; None if there is none.

    The packages of the public index are placeholders that refuse to import: no installation.
    """
    if installed():
        return None
    before = set(sys.modules)
    try:
        found = importlib.import_module("nki")
        importlib.import_module("nki.language")
    except Exception:  # a placeholder may raise anything
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "nki":
                del sys.modules[name]
        return None
    return str(getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ["nki"]))))


def install(*, shadow: bool = False, backend: str | None = None) -> Any:
    """Put the simulator under the name `nki` into `sys.modules` and return it.

    Args:
        shadow: also where a real `nki` can be imported.
        backend: "vendor" returns the real `nki` instead; sessions run kernels through its own
            simulator. Without an argument the environment's NKI_SIMULATOR_BACKEND, else
            "simulator".

    Raises:
        NkiInstallError: a real `nki` can be imported, and `shadow` is not set; or there is none
            for "vendor".
    """
    if context.choose_backend(backend) == "vendor":
        return _vendor()
    context.set_backend(backend)
    if installed():
        return sys.modules["nki"]
    real = None if shadow else real_installation()
    if real is not None:
        raise NkiInstallError(
            f"nki: expected no other installation, found {real}; "
            "use it, or say install(shadow=True) to put the simulator in its place"
        )
    uninstall()
    sys.modules.update(modules())
    return sys.modules["nki"]


def _vendor() -> Any:
    if installed():
        uninstall()
    if real_installation() is None:
        raise NkiInstallError(
            "nki: expected the vendor's package for backend='vendor', found none or a placeholder; "
            "install it from the vendor's index, or leave backend out"
        )
    importlib.import_module("nki.isa")
    context.set_backend("vendor")
    return sys.modules["nki"]


def uninstall() -> None:
    """Forget every module named `nki`, so that the next import looks for an installation."""
    context.set_backend(None)
    for name in [name for name in sys.modules if name == "nki" or name.startswith("nki.")]:
        del sys.modules[name]
