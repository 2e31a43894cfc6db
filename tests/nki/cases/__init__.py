"""The table of `tests/nki/test_ops.py`, one module per family."""

from tests.nki.cases import (
    activation,
    edges,
    elementwise,
    gpsimd,
    matmul,
    movement,
    mx,
    operators,
    reductions,
    selection,
)

FAMILIES = (elementwise, activation, reductions, movement, matmul, selection, gpsimd, mx)
ACROSS = (operators, edges)
CASES = [case for family in FAMILIES + ACROSS for case in family.CASES]
