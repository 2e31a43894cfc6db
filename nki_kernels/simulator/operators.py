"""The functions of `nki.language` that stand for an operator: `op=nl.add`, or `nl.add(x, y)`."""

from typing import Any

from nki_kernels.simulator.alu import OPERATORS, Operator


class NlFunction:
    """`nl.NAME`: names the operator to an instruction; called, it makes a new SBUF tile."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.__name__ = self.__qualname__ = operator.name
        self.__doc__ = f"The operator {operator.name}; called with tiles, a new SBUF tile."

    def __call__(self, *operands: Any, dtype: Any = None) -> Any:
        from nki_kernels.simulator.language.wrappers import elementwise

        return elementwise(self, operands, dtype)

    def __repr__(self) -> str:
        return f"nl.{self.__name__}"


FUNCTIONS = {name: NlFunction(operator) for name, operator in OPERATORS.items()}
