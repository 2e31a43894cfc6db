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
    transfers,
)

FAMILIES = (elementwise, activation, reductions, movement, matmul, selection, gpsimd, mx)
ACROSS = (operators, edges, transfers)
CASES = [case for family in FAMILIES + ACROSS for case in family.CASES]
