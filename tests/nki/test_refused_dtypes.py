"""Which dtypes an argument takes; all others are refused under the rule's name."""

from collections.abc import Callable
from typing import Any

import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from tests.nki.cases.base import DTYPES
from tests.nki.cases.refused import sb
from tests.nki.cases.refused_arguments import PAIRS, TAKES


def broken(call: Callable[[], Any]) -> str:
    """The rule that the call breaks; empty if it runs."""

    def kernel() -> None:
        call()

    try:
        with session(target="trn2", strict=True):
            jit(kernel)()
    except NkiValidationError as refused:
        return refused.rule
    return ""


@pytest.mark.parametrize("argument", TAKES)
def test_an_argument_takes_its_dtypes_and_refuses_the_others(argument: str) -> None:
    call, allowed = TAKES[argument]
    found = {kind: broken(lambda kind=kind: call(kind)) for kind in DTYPES}
    assert {kind for kind, rule in found.items() if not rule} == allowed
    assert {rule for rule in found.values() if rule} <= {"dtype", "generation"}, found


@pytest.mark.parametrize("op", PAIRS)
def test_what_moves_elements_refuses_unequal_dtypes(op: str) -> None:
    def rule(source: Any, target: Any) -> str:
        return broken(lambda: PAIRS[op](sb(8, 8, dtype=source), sb(8, 8, dtype=target)))

    assert {rule(a, b) for a in DTYPES for b in DTYPES if a != b} == {"same-dtype"}
