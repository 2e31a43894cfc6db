"""The table of `tests/nki/test_ops.py`, one module per family."""

from tests.nki.cases import (
    activation,
    chance,
    dtype_pairs,
    edges,
    elementwise,
    gpsimd,
    matmul,
    movement,
    mx,
    operators,
    reductions,
    registers,
    selection,
    transfers,
)

FAMILIES = (elementwise, activation, reductions, movement, matmul, selection, gpsimd, mx)
ACROSS = (operators, dtype_pairs, registers, edges, transfers, chance)
CASES = [case for family in FAMILIES + ACROSS for case in family.CASES]
