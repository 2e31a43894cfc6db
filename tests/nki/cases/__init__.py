"""The table of `tests/nki/test_ops.py`, one module per family."""

from tests.nki.cases import (
    activation,
    elementwise,
    gpsimd,
    matmul,
    movement,
    mx,
    reductions,
    selection,
)

CASES = [
    case
    for family in (elementwise, activation, reductions, movement, matmul, selection, gpsimd, mx)
    for case in family.CASES
]
