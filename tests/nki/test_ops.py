"""Each instruction and argument against an independent float64 statement of its meaning.

Floats are compared with the rounding of the output's dtype, integers exactly, each output alone.
"""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.instruction import INSTRUCTIONS
from tests.nki.cases import CASES
from tests.nki.cases.base import Case, P, normal
from tests.nki.cases.check import check
from tests.nki.harness import Out, run


@pytest.mark.parametrize("of", CASES, ids=[of.id for of in CASES])
def test_instruction_means_what_is_documented(of: Case) -> None:
    check(of)


def test_a_sine_is_exact_inside_and_finite_outside() -> None:
    x = np.array([[0.5, 3.0, 3.5, -3.5]], np.float32)
    found = run({"x": x}, {"y": Out((1, 4))}, lambda t: nisa.activation(t.y, nl.sin, t.x))["y"]
    np.testing.assert_allclose(found[0, :2], np.sin(x[0, :2]), rtol=1e-6)
    assert found[0, 2] == -found[0, 3]
    assert abs(found[0, 2] - np.sin(3.5)) < 1e-3


def test_reduce_res_inside_dst_keeps_the_sum() -> None:
    x = normal(P, 8)

    def call(t: Any) -> None:
        nisa.activation_reduce(t.dst, nl.copy, t.x, nl.add, t.dst[:, 0:1])

    found = run({"x": x}, {"dst": Out((P, 8))}, call)["dst"]
    np.testing.assert_allclose(found[:, :1], x.sum(1, keepdims=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[:, 1:], x[:, 1:])


def test_every_operand_of_an_instruction_is_an_argument_of_it() -> None:
    for spec in INSTRUCTIONS.values():
        assert set(spec.operands) | set(spec.operators) <= set(spec.signature.parameters), spec.name
        assert spec.body.__doc__, spec.name
