"""Each argument of each instruction is tested: take it away, and a row of the op table objects.

What has no numerical effect stands in `WITHOUT_EFFECT`, with its reason.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiError, NkiNotSimulated, NkiValidationError, instruction
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import INSTRUCTIONS
from nki_kernels.simulator.tensor import NkiTensor
from tests.nki.cases import CASES
from tests.nki.cases.base import BF16, Case
from tests.nki.cases.check import check
from tests.nki.harness import Out, run
from tests.nki.test_refusals import REFUSALS, refused

NOT_SIMULATED = "its order is not described: see the last test"
TWO_CORES = "two cores: test_cores"
WHERE = "says where it runs; the value is the same"
WITHOUT_EFFECT = {
    ("activation", "engine"): WHERE,
    ("activate2", "engine"): WHERE,
    ("core_barrier", "cores"): TWO_CORES,
    ("core_barrier", "engine"): TWO_CORES,
    ("dma_compute", "scales"): "only 1.0 is taken",
    ("dma_copy", "priority"): "order of the queues",
    ("dma_copy", "dge_mode"): "how descriptors are made",
    ("dma_copy", "engine"): "whose queue is used",
    ("dma_transpose", "dge_mode"): "how descriptors are made",
    ("dma_transpose", "priority"): "order of the queues",
    ("dma_transpose", "engine"): "whose queue is used",
    ("dma_transpose", "axes"): "each rank has the one order, its default",
    ("dma_transpose", "oob_mode"): "skipped rows of a transpose are refused",
    ("memset", "engine"): WHERE,
    ("nc_matmul", "is_moving_onezero"): "a hint: halves the time",
    ("nc_matmul", "is_stationary_onezero"): "a hint: halves the time",
    ("nc_matmul", "tile_position"): WHERE,
    ("nc_matmul", "tile_size"): WHERE,
    ("nc_matmul_mx", "tile_position"): WHERE,
    ("nc_matmul_mx", "tile_size"): WHERE,
    ("nc_transpose", "engine"): WHERE,
    ("range_select", "on_false_value"): "only its default is taken",
    ("range_select", "reduce_op"): "only its default is taken",
    ("select_reduce", "reduce_op"): "only its default is taken",
    ("rand_get_state", "engine"): "the size of the state says it",
    ("rand_set_state", "engine"): "the size of the state says it",
    ("sendrecv", "dma_engine"): TWO_CORES,
    ("tensor_copy", "engine"): WHERE,
    ("tensor_reduce", "keepdims"): "dst has its shape",
    ("tensor_scalar", "engine"): WHERE,
    ("tensor_scalar_reduce", "reverse0"): "only False is taken",
    ("topk", "sorted"): NOT_SIMULATED,
}
REFUSED_MEMBERS = {  # of an enumeration; each has its refusal
    ("activation", "reduce_cmd"): {"load_reduce"},
    ("activate2", "reduce_cmd"): {"load_reduce"},
    ("range_select", "reduce_cmd"): {"load_reduce"},
    ("select_reduce", "reduce_cmd"): {"load_reduce"},
    ("tensor_scalar_cumulative", "reduce_cmd"): {"idle", "reset"},
    ("dma_transpose", "oob_mode"): {"skip"},
    ("nc_matmul", "perf_mode"): {"double_column", "double_pixel", "double_row_gen3"},
}
CORES = {"core_barrier", "sendrecv"}
OPTIONAL = [(op, name) for op, spec in INSTRUCTIONS.items() for name in spec.defaults]
REQUIRED = [
    (op, name)
    for op, spec in INSTRUCTIONS.items()
    for name in spec.signature.parameters
    if op not in CORES and name not in spec.defaults and name not in spec.operators
]


@contextmanager
def every_call(change: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """`change(op, arguments)` before each instruction."""
    real = instruction._run

    def run(spec: Any, args: Any, kwargs: Any, name: Any) -> Any:
        given = dict(zip(spec.signature.parameters, args, strict=False)) | kwargs
        change(spec.name, given)
        return real(spec, (), given, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instruction, "_run", run)
        yield


@cache
def values() -> dict[tuple[str, str], dict[str, list[Case]]]:
    """(op, argument) -> what the rows of the op give it, as text, and which rows."""
    found: dict[tuple[str, str], dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for of in CASES:

        def note(op: str, given: dict[str, Any], of: Case = of) -> None:
            if op != of.op:
                return
            for argument, value in given.items():
                text = "a tensor" if isinstance(value, NkiTensor) else repr(value)
                name = getattr(getattr(value, "operator", value), "name", None)
                rows = found[op, argument][name if isinstance(name, str) else text]
                rows.append(of) if of not in rows[-1:] else None

        with every_call(note):
            check(of)
    return found


@cache
def refusals() -> set[tuple[str, str]]:
    """(op, argument) of what is refused in `test_refusals`."""
    named = set()
    for one in REFUSALS:
        with pytest.raises(NkiValidationError) as caught:
            refused(one, strict=True)
        named.add((caught.value.op, caught.value.argument))
    return named


def objects(of: Case, op: str, argument: str, *errors: type[Exception]) -> bool:
    """Whether the row fails, with one of the errors, when the argument has its default."""
    try:
        with every_call(lambda name, given: given.pop(argument, None) if name == op else None):
            check(of)
    except NkiError as error:
        return isinstance(error, errors)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(("op", "argument"), OPTIONAL, ids=map("-".join, OPTIONAL))
def test_a_row_objects_when_the_argument_is_dropped(op: str, argument: str) -> None:
    default = INSTRUCTIONS[op].defaults[argument]
    text = default.name if isinstance(default, Enum) else repr(default)
    given = values().get((op, argument), {})
    rows = [of for value, rows in given.items() if value != text for of in rows]
    if reason := WITHOUT_EFFECT.get((op, argument)):
        assert not any(objects(of, op, argument) for of in rows[:9]), "it has an effect"
        assert rows or (op, argument) in refusals() or reason in (TWO_CORES, NOT_SIMULATED)
    else:
        assert any(objects(of, op, argument, NkiError) for of in rows), f"{len(rows)} rows"


@pytest.mark.parametrize(("op", "argument"), REQUIRED, ids=map("-".join, REQUIRED))
def test_a_required_argument_takes_two_values(op: str, argument: str) -> None:
    given = values()[op, argument]
    assert "a tensor" in given or len(given) > 1 or argument in INSTRUCTIONS[op].operands


def test_every_operator_that_an_argument_takes_has_a_row() -> None:
    missing = {
        (op, argument): left
        for op, spec in INSTRUCTIONS.items()
        for argument, allowed in spec.operators.items()
        if (left := allowed - values().get((op, argument), {}).keys() - {"bypass"})
        and (op, argument) not in WITHOUT_EFFECT
    }
    assert not missing


def test_every_member_of_an_enumeration_has_a_row() -> None:
    for op, spec in INSTRUCTIONS.items():
        for argument, default in spec.defaults.items():
            if not isinstance(default, Enum) or isinstance(default, Engine) or op in CORES:
                continue
            given = values().get((op, argument), {}).keys() | {default.name}
            not_taken = REFUSED_MEMBERS.get((op, argument), set())
            assert given == {one.name for one in type(default)} - not_taken, (op, argument)
            assert not not_taken or (op, argument) in refusals(), (op, argument)


def test_every_engine_of_an_instruction_has_a_row() -> None:
    for op, spec in INSTRUCTIONS.items():
        if "engine" in spec.signature.parameters and op not in CORES:
            given = values().get((op, "engine"), {}).keys()
            wanted = {engine.name for engine in spec.engines} - {"dma"}
            assert wanted <= given, (op, wanted - given)


def test_every_instruction_has_a_row() -> None:
    assert {of.op for of in CASES} | CORES == set(INSTRUCTIONS)


def test_sorted_of_topk_is_named_as_not_simulated() -> None:
    def call(t: Any) -> None:
        nisa.topk(t.v, t.i, t.a, 8, sorted=True)

    outputs = {"v": Out((16, 1), nl.bfloat16), "i": Out((16, 1), nl.uint32)}
    with pytest.raises(NkiNotSimulated, match="sorted=True"):
        run({"a": np.zeros((16, 8), BF16)}, outputs, call)
