"""Values that exist only when the kernel runs: registers and `NkiScalar`."""

from typing import Any

import numpy as np

from nki_kernels.simulator.context import current, refuse, refuse_endless
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.errors import NkiTypeError


class RuntimeScalar:
    """A run-time integer. It may be an offset or a loop bound; its value is not known to Python."""

    __slots__ = ("bits", "value")

    def __init__(self, value: int, bits: int = 32) -> None:
        self.bits = bits
        self.value = (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)  # wraps

    def read(self, argument: str = "") -> Array:
        """The value as an array of one element, as a tensor gives it."""
        return np.array([[self.value]])

    def _refused(self, *others: Any) -> Any:
        return refuse(
            *("tensor-value", "", "a compile-time value in Python control flow, int() or range()"),
            *(f"a run-time {type(self).__name__}", type(self).__name__),
            kind=NkiTypeError,
        )

    __bool__ = __int__ = __index__ = __float__ = __len__ = __iter__ = _refused
    __lt__ = __le__ = __gt__ = __ge__ = _refused
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return False if other is None else bool(self._refused())


class VirtualRegister(RuntimeScalar):
    """A register: `register_alloc`, or the index of a run-time loop. It has no arithmetic.

    `while register:` and `if register:` are run-time control flow of the parser; not of the tracer.
    """

    __slots__ = ("tested",)

    def __init__(self, value: int, bits: int = 32) -> None:
        super().__init__(value, bits)
        self.tested = 0  # times in a row that it was found not to be 0

    def __bool__(self) -> bool:
        if current().frontend != "parser":
            return bool(self._refused())
        if self.value == 0:
            self.tested = 0
            return False
        refuse_endless(self.tested, "while register")
        self.tested += 1
        return True


class NkiScalar(RuntimeScalar):
    """A traced scalar (0.7): + - * with another of its width or a Python int; int32 wraps."""

    def _with(self, other: Any, result: int) -> "NkiScalar":
        return NkiScalar(result, self.bits)

    def _operand(self, other: Any) -> int:
        if isinstance(other, NkiScalar) and other.bits == self.bits:
            return other.value
        if isinstance(other, int) and not isinstance(other, bool):
            return other
        refuse(
            "dtype", "operand", f"an int or an NkiScalar of {self.bits} bits", other, "NkiScalar"
        )
        raise AssertionError

    def __add__(self, other: Any) -> "NkiScalar":
        return NkiScalar(self.value + self._operand(other), self.bits)

    def __sub__(self, other: Any) -> "NkiScalar":
        return NkiScalar(self.value - self._operand(other), self.bits)

    def __rsub__(self, other: Any) -> "NkiScalar":
        return NkiScalar(self._operand(other) - self.value, self.bits)

    def __mul__(self, other: Any) -> "NkiScalar":
        return NkiScalar(self.value * self._operand(other), self.bits)

    __radd__, __rmul__ = __add__, __mul__
