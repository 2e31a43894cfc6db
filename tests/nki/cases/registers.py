"""Every `reduce_cmd` of every instruction that has one, as sequences that end in the registers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import case, op, whole
from tests.nki.harness import Out

R, C = 40, 6
A, B = (whole(R, C, low=1, high=9).astype(np.float32) for _ in range(2))
START = whole(R, 1, low=2, high=7).astype(np.float32)
FOLDS: dict[str, Any] = {"add": np.sum, "multiply": np.prod, "maximum": np.max, "minimum": np.min}
CMD = nisa.reduce_cmd


@dataclass(frozen=True)
class Reducer:
    """call(dst, data, reduce_op, keywords), what it writes, and its operators."""

    call: Callable[[Any, Any, Any, Any], Any]
    writes: Callable[[Any], Any]
    operators: tuple[str, ...]
    loads: bool = False  # has an initial value
    target: str = "trn2"


def ranged(dst: Any, data: Any, op: Any, more: Any) -> None:
    low, high = nl.full((R, 1), 1.0, nl.float32), nl.full((R, 1), 4.0, nl.float32)
    nisa.range_select(dst, data, nl.greater_equal, nl.less, low, high, reduce_op=op, **more)


def selected(dst: Any, data: Any, op: Any, more: Any) -> None:
    chosen = nl.full((R, C), 1, nl.uint8)
    nisa.select_reduce(dst, chosen, data, 0.0, reduce_op=op, **more)


REDUCERS = {
    "activation": Reducer(
        lambda d, a, op, more: nisa.activation(d, nl.copy, a, scale=2.0, reduce_op=op, **more),
        *(lambda a: 2 * a, ("add",)),
    ),
    "activate2": Reducer(
        lambda d, a, op, more: nisa.activate2(
            *(d, nl.copy, a, 2.0, 0.0, nl.multiply, nl.bypass), reduce_op=op, **more
        ),
        *(lambda a: 2 * a, ("add", "maximum", "minimum")),
        target="trn3",
    ),
    "exponential": Reducer(
        lambda d, a, op, more: nisa.exponential(d, a, 5.0, **more),
        *(lambda a: np.exp(a - 5), ("add",), True, "trn3"),
    ),
    "select_reduce": Reducer(selected, lambda a: a, ("maximum",)),
    "range_select": Reducer(
        ranged,
        lambda a: np.where((np.arange(C) >= 1) & (np.arange(C) < 4), a, np.finfo(np.float32).min),
        ("maximum",),
    ),
    "tensor_scalar_reduce": Reducer(
        lambda d, a, op, more: nisa.tensor_scalar_reduce(d, a, nl.add, 1.0, op, **more),
        *(lambda a: a + 1, tuple(FOLDS), True),
    ),
}
SEQUENCES: dict[str, tuple[list[tuple[str, str]], str]] = {  # (data, command) ..., what is reduced
    "reset_reduce": ([("b", "reset_reduce"), ("a", "reset_reduce")], "a"),
    "reduce": ([("a", "reset_reduce"), ("b", "reduce")], "ab"),
    "reset": ([("a", "reset_reduce"), ("a", "reset"), ("b", "reduce")], "b"),
    "load_reduce": ([("b", "reset_reduce"), ("a", "load_reduce"), ("b", "reduce")], "sab"),
}


def sequence(name: str, made: Reducer, operator: str, commands: str) -> Any:
    steps, folded = SEQUENCES[commands]
    sign = -1 if operator == "maximum" else 1  # a register that starts at 0 shows

    def call(t: Any) -> None:
        for i, (source, command) in enumerate(steps):
            more: dict[str, Any] = {"reduce_cmd": getattr(CMD, command)}
            if command == "load_reduce":
                more["reduce_init"] = t.s
            if i == len(steps) - 1:
                more["reduce_res"] = t.total
            made.call(getattr(t, f"dst{i}"), getattr(t, source), op(operator), more)

    def expected(a: Any, b: Any, s: Any) -> Any:
        parts = {"a": made.writes(a), "b": made.writes(b), "s": s}
        total = FOLDS[operator](np.concatenate([parts[p] for p in folded], 1), axis=1)
        return (*(parts[source] for source, _ in steps), total[:, None])

    dst = {f"dst{i}": Out((R, C)) for i in range(len(steps))}
    return case(
        f"{name}-{commands}-{operator}",
        {"a": sign * A, "b": sign * B, "s": sign * START},
        {**dst, "total": Out((R, 1))},
        *(call, expected),
        target=made.target,
    )


CASES = [
    *(
        sequence(name, made, operator, commands)
        for name, made in REDUCERS.items()
        for operator in made.operators
        for commands in SEQUENCES
        if commands != "load_reduce" or made.loads
    ),
    *(
        case(
            f"{name}-idle",
            {"a": A},
            Out((R, C)),
            lambda t, made=made: made.call(
                t.dst, t.a, op(made.operators[0]), {"reduce_cmd": CMD.idle}
            ),
            lambda a, made=made: made.writes(a),
            target=made.target,
        )
        for name, made in REDUCERS.items()
    ),
    case(
        "exponential-load_reduce-starts-at-a-number",
        {"a": A},
        {"dst": Out((R, C)), "total": Out((R, 1))},
        lambda t: nisa.exponential(
            *(t.dst, t.a, 5.0), reduce_res=t.total, reduce_cmd=CMD.load_reduce, reduce_init=100.0
        ),
        lambda a: (np.exp(a - 5), 100 + np.exp(a - 5).sum(1, keepdims=True)),
        target="trn3",
    ),
    case(
        "activation-has-registers-apart-from-those-of-VectorE",
        {"a": A, "b": B},
        {"dst": Out((R, C)), "mine": Out((R, 1)), "other": Out((R, 1))},
        lambda t: [
            nisa.activation(t.dst, nl.copy, t.a, reduce_op=nl.add, reduce_cmd=CMD.reset_reduce),
            nisa.tensor_scalar_reduce(t.dst, t.b, nl.add, 0.0, nl.add, t.other),
            nisa.activation(
                *(t.dst, nl.copy, t.b),
                reduce_op=nl.add,
                reduce_cmd=CMD.reduce,
                reduce_res=t.mine,
            ),
        ],
        lambda a, b: (b, (a.sum(1) + b.sum(1))[:, None], b.sum(1, keepdims=True)),
    ),
    case(
        "tensor_scalar_reduce-registers-of-other-partitions-stay",
        {"a": whole(64, C, low=1, high=9).astype(np.float32)},
        {"dst": Out((64, C)), "total": Out((64, 1))},
        lambda t: [
            nisa.tensor_scalar_reduce(t.dst, t.a, nl.add, 0.0, nl.add),
            nisa.tensor_scalar_reduce(t.dst[32:64], t.a[32:64], nl.add, 1.0, nl.add),
            nisa.tensor_scalar_reduce(
                t.dst, t.a, nl.add, 0.0, nl.add, t.total, reduce_cmd=CMD.reduce
            ),
        ],
        lambda a: (a, (2 * a.sum(1) + C * (np.arange(64) >= 32))[:, None]),
    ),
]
