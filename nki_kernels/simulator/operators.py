"""The functions of `nki.language` that stand for an operator: `op=nl.add`, or `nl.add(x, y)`."""

from inspect import Parameter, Signature
from typing import Any

from nki_kernels.simulator.alu import OPERATORS, Operator
from nki_kernels.simulator.context import refuse

X, Y = (Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in "xy")
DTYPE = Parameter("dtype", Parameter.POSITIONAL_OR_KEYWORD, default=None)
CONSTANTS = {"average", "bypass", "prelu"}  # given to instructions, not called
SIGNATURES = {1: Signature([X, DTYPE]), 2: Signature([X, Y, DTYPE])}


class NlFunction:
    """`nl.NAME`: names the operator to an instruction; called, it makes a new SBUF tile."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.__name__ = self.__qualname__ = operator.name
        self.__signature__ = SIGNATURES[operator.arity]
        self.__doc__ = f"The operator {operator.name}; called with tiles, a new SBUF tile."

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from nki_kernels.simulator.language.wrappers import elementwise

        if self.__name__ in CONSTANTS:
            expected = f"op=nl.{self.__name__} of an instruction"
            refuse("signature", "", expected, "a call", repr(self))
        try:
            bound = self.__signature__.bind(*args, **kwargs).arguments
        except TypeError as error:
            refuse("signature", "", f"nl.{self.__name__}{self.__signature__}", error, repr(self))
        dtype = bound.pop("dtype", None)
        return elementwise(self, tuple(bound.values()), dtype)

    def __repr__(self) -> str:
        return f"nl.{self.__name__}"


FUNCTIONS = {name: NlFunction(operator) for name, operator in OPERATORS.items()}
