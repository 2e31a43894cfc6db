"""Instructions of the device that this simulator names but does not run."""

from collections.abc import Callable
from typing import Any, NoReturn

from nki_kernels.simulator.errors import NkiNotSimulated, kernel_line, text

REASONS: dict[str, str] = {}


def collective(name: str) -> Callable[..., NoReturn]:
    """`nki.collectives.NAME`: kernels import them at the top and may never call them."""
    if name.startswith("__"):
        raise AttributeError(name)
    return refusing(f"nki.collectives.{name}", "collectives are not modelled")


def refusing(name: str, reason: str) -> Callable[..., NoReturn]:
    """A function that says by its name that it is not simulated."""

    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise NkiNotSimulated(f"{name}: not simulated ({reason}) at {text(kernel_line())}")

    refused.__name__ = refused.__qualname__ = name
    refused.__doc__ = f"Not simulated: {reason}."
    return refused
