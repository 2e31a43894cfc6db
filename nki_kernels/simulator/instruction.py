"""How an instruction is declared, and what every call goes through.

    @instruction(V, G, dst=Operand("write"), data1=Operand("read"), data2=Operand("read"),
                 operators={"op": BINARY}, checks=[same_partitions("dst", "data1", "data2")])
    def tensor_tensor(dst, data1, data2, op, engine=Engine.unknown): ...

The declaration is data: the table of the documentation and the refusal tests are made from
`INSTRUCTIONS`. The body only computes; it gets resolved operators and the engine that runs it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import wraps
from typing import Any

import numpy as np

from nki_kernels.simulator import alu, context, dtypes
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Dtype
from nki_kernels.simulator.errors import kernel_line
from nki_kernels.simulator.handles import NkiInstruction
from nki_kernels.simulator.hardware import PARTITIONS, REACH, Engine
from nki_kernels.simulator.ledger import Access, Event
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor

ON_CHIP = frozenset({Buffer.sbuf, Buffer.psum})
SBUF, PSUM = frozenset({Buffer.sbuf}), frozenset({Buffer.psum})
HBM = frozenset({Buffer.hbm, Buffer.shared_hbm, Buffer.private_hbm})


@dataclass(frozen=True)
class Operand:
    """What a tensor argument must be."""

    role: str  # read, write
    buffers: frozenset[Buffer] = ON_CHIP
    dtypes: frozenset[Dtype] | None = None  # None: every one that fits in a tile
    number: bool = False  # a Python number may stand for it
    column: bool = False  # shape (P, 1)
    optional: bool = False
    max_partitions: int = PARTITIONS
    max_free: int | None = None  # elements per partition
    min_free: int = 1


@dataclass(frozen=True)
class Instruction:
    """A declared instruction. `engines`: first generation of each."""

    name: str
    engines: Mapping[Engine, int]
    generations: tuple[int, ...]
    since: str  # first version of NKI
    operands: Mapping[str, Operand]
    operators: Mapping[str, frozenset[str]]
    checks: Sequence["Check"]
    choose: Callable[["Call"], Engine] | None
    signature: inspect.Signature
    body: Callable[..., Any]
    defaults: Mapping[str, Any]


@dataclass
class Call:
    """One call: its instruction, bound arguments and the engine."""

    of: Instruction
    arguments: dict[str, Any]
    engine: Engine = Engine.unknown

    def __post_init__(self) -> None:
        self._tensors: list[tuple[str, NkiTensor]] = []
        for name in self.of.operands:
            value = self.arguments[name]
            if isinstance(value, NkiTensor):
                self._tensors.append((name, value))
            elif isinstance(value, (list, tuple)):
                self._tensors += [(name, item) for item in value if isinstance(item, NkiTensor)]

    def tensors(self, *names: str) -> list[tuple[str, NkiTensor]]:
        """The operands (those named, in that order) that are tensors."""
        if not names:
            return self._tensors
        return [pair for name in names for pair in self._tensors if pair[0] == name]


Check = Callable[[Call], None]
INSTRUCTIONS: dict[str, Instruction] = {}
OLD_ARGUMENTS = {"dtype", "mask"}


def instruction(
    *engines: Engine,
    checks: Sequence[Check] = (),
    operators: Mapping[str, Iterable[str]] | None = None,
    generations: tuple[int, ...] = (2, 3, 4),
    since: str = "0.3",
    engine_since: Mapping[Engine, int] | None = None,
    choose: Callable[[Call], Engine] | None = None,
    **operands: Operand,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an instruction; see the module's docstring.

    Args:
        engines: where it runs; the first is the default.
        engine_since: first generation on which an engine runs it.
        choose: picks the engine where the caller left it open.
        operands: one `Operand` per tensor argument.
    """

    def declare(body: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(body)
        spec = Instruction(
            name=body.__name__,
            engines={engine: (engine_since or {}).get(engine, 2) for engine in engines},
            generations=generations,
            since=since,
            operands=operands,
            operators={name: frozenset(allowed) for name, allowed in (operators or {}).items()},
            checks=checks,
            choose=choose,
            signature=signature,
            body=body,
            defaults={
                name: parameter.default
                for name, parameter in signature.parameters.items()
                if parameter.default is not parameter.empty
            },
        )
        INSTRUCTIONS[spec.name] = spec

        @wraps(body)
        def run(*args: Any, name: str | None = None, **kwargs: Any) -> Any:
            return _run(spec, args, kwargs, name)

        named = inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=None)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), named]
        )
        return run

    return declare


def _run(spec: Instruction, args: Any, kwargs: Any, name: str | None) -> Any:
    context.set_op(spec.name)
    session, core = context.current(), context.core()
    if session.generation.number not in spec.generations:
        on = ", ".join(f"gen{number}" for number in spec.generations)
        refuse("generation", "", on, f"target {session.generation.name}")
    if session.nki < spec.since:
        refuse("nki-version", "", f"NKI {spec.since} or newer", session.nki)
    if kwargs.keys() & OLD_ARGUMENTS:
        kwargs = _without_old(kwargs)
    call = Call(spec, _bind(spec, args, kwargs))
    _check_enums(call)
    _check_scope(call, core.loop)
    for argument, operand in spec.operands.items():
        _check_operand(call, argument, operand)
    call.engine = _engine(call)
    context.set_engine(call.engine)
    if "engine" in call.arguments and call.engine is not Engine.dma:  # a DMA's only starts it
        call.arguments["engine"] = call.engine
    _check_reach(call)
    for argument, allowed in spec.operators.items():
        if call.arguments[argument] is not None:
            call.arguments[argument] = alu.find(call.arguments[argument], argument, allowed)
    for check in spec.checks:
        check(call)
    with np.errstate(all="ignore"):
        result = spec.body(**call.arguments)
    event = _event(call, name, core)
    session.ledger.record(event)
    return NkiInstruction(event) if result is None else result


def _bind(spec: Instruction, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with defaults; refused as Python would, with the signature."""
    given = dict(zip(spec.signature.parameters, args, strict=False))
    bound = {**spec.defaults, **given, **kwargs}
    if (
        len(args) > len(spec.signature.parameters)
        or given.keys() & kwargs.keys()
        or bound.keys() != spec.signature.parameters.keys()
    ):
        try:
            spec.signature.bind(*args, **kwargs)
        except TypeError as error:
            names = ", ".join(spec.signature.parameters)
            refuse("signature", "", f"{spec.name}({names})", error)
    return bound


def _without_old(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of NKI 0.1 and 0.2 that change nothing are dropped: dst has a dtype, no mask."""
    kept = dict(kwargs)
    for name in OLD_ARGUMENTS & kwargs.keys():
        value = kwargs[name]
        if value is None or (name == "dtype" and dtypes.find(value) is not None):
            refuse("old-argument", name, "no such argument: dst has its dtype, whole tiles", value)
            del kept[name]
    return kept


def _check_enums(call: Call) -> None:
    for argument, parameter in call.of.signature.parameters.items():
        default, value = parameter.default, call.arguments[argument]
        if not isinstance(default, Enum) or isinstance(value, type(default)):
            continue
        kind = type(default)
        numbered = issubclass(kind, IntEnum) and type(value) is int and value in list(kind)
        rule = "enum-number" if numbered else "enum"
        refuse(rule, argument, f"a member of {kind.__name__}", repr(value))
        call.arguments[argument] = kind(value)


def _check_scope(call: Call, loop: context.Loop | None) -> None:
    for argument, tensor in call.tensors():
        made = tensor.storage.loop
        if made is not None and (loop is None or loop.number != made):
            expected = "a tensor made outside of the run-time loop: the body is traced once"
            refuse("loop-scope", argument, expected, f"{tensor!r}, made in the body of one")


def _check_operand(call: Call, argument: str, operand: Operand) -> None:
    value = call.arguments[argument]
    if value is None and operand.optional:
        return
    if isinstance(value, (int, float, np.number)) and operand.number:
        return
    tensors = call.tensors(argument)
    if not tensors:
        what = "a tensor or a number" if operand.number else "a tensor"
        refuse("signature", argument, what, repr(value))
    for _, tensor in tensors:
        _check_tensor(argument, tensor, operand)


def _check_tensor(argument: str, tensor: NkiTensor, operand: Operand) -> None:
    if tensor.buffer not in operand.buffers:
        lies = " or ".join(sorted(buffer.value for buffer in operand.buffers))
        refuse("buffer", argument, lies, tensor)
    if operand.dtypes is not None and tensor.dtype not in operand.dtypes:
        refuse("dtype", argument, ", ".join(sorted(map(repr, operand.dtypes))), tensor.dtype)
    if tensor.on_chip:
        if tensor.shape[0] > operand.max_partitions:
            refuse("size-limit", argument, f"<= {operand.max_partitions} partitions", tensor)
        if operand.column and tensor.free != 1:
            refuse("shape", argument, "one element per partition (P, 1)", tensor)
        most = operand.max_free
        if tensor.free < operand.min_free or (most is not None and tensor.free > most):
            limits = f"{operand.min_free}..{most or ''} elements per partition"
            refuse("size-limit", argument, limits, tensor)
    storage = tensor.storage
    if operand.role == "write" and storage.is_input and not storage.mutable:
        refuse(
            *("undeclared-write", argument, "an output, or an input annotated mutable_tensor"),
            f"the input {tensor!r}",
        )


def _engine(call: Call) -> Engine:
    asked = call.arguments.get("engine", Engine.unknown)
    if asked is Engine.unknown or call.of.engines.keys() & {Engine.dma, Engine.sync}:
        return call.of.choose(call) if call.of.choose else next(iter(call.of.engines))
    if asked not in call.of.engines:
        refuse("engine", "engine", ", ".join(e.name for e in call.of.engines), asked.name)
    first = call.of.engines[asked]
    if context.current().generation.number < first:
        refuse("generation", "engine", f"{asked.name} from gen{first}", "an older target")
    return asked  # type: ignore[no-any-return]


def _check_reach(call: Call) -> None:
    for argument, tensor in call.tensors():
        if tensor.buffer not in REACH[call.engine]:
            refuse("engine-buffer", argument, f"a buffer that {call.engine.name} reaches", tensor)
        if tensor.on_chip and call.engine not in (Engine.dma, Engine.sync):
            _check_partitions(argument, tensor)


def _check_partitions(argument: str, tensor: NkiTensor) -> None:
    width, start = tensor.shape[0], tensor.start_partition
    if width > 1 and tensor.strides[0] != tensor.row:
        refuse("partition-stride", argument, "contiguous partitions", tensor.strides[0])
    step = 128 if width > 64 else 64 if width > 32 else 32
    if start % step:
        allowed = ", ".join(str(number) for number in range(0, PARTITIONS, step))
        refuse("partition-start", argument, f"{width} partitions from {allowed}", f"from {start}")
    if tensor.ndim > 5 and free_dimensions(tensor) > 4:
        refuse("free-dimensions", argument, "<= 4 free dimensions", tensor)


def free_dimensions(tensor: NkiTensor) -> int:
    """Free dimensions that are left when those that lie densely are merged."""
    count, inner = 0, None
    for extent, stride in reversed(list(zip(tensor.shape[1:], tensor.strides[1:], strict=True))):
        if extent == 1:
            continue
        if inner != stride:
            count += 1
        inner = stride * extent
    return count


def _event(call: Call, name: str | None, core: context.Core) -> Event:
    reads: list[Access] = []
    writes: list[Access] = []
    for argument, tensor in call.tensors():
        into = writes if call.of.operands[argument].role == "write" else reads
        into.append(tensor.access(argument))
        if tensor.dynamic is not None:
            for offset in (tensor.dynamic.scalar, tensor.dynamic.vector):
                if isinstance(offset, NkiTensor):
                    reads.append(offset.access(f"{argument}.offset"))
    attributes = {
        key: value.name if isinstance(value, alu.Operator) else value
        for key, value in call.arguments.items()
        if not isinstance(value, (NkiTensor, list))
    }
    ledger, loop = context.current().ledger, core.loop
    event = Event(
        *(len(ledger.events), core.index, call.of.name, call.engine, name, kernel_line()),
        *(tuple(reads), tuple(writes), attributes),
        loop=(loop.number, loop.iteration) if loop is not None else None,
    )
    if core.in_order:
        event.issued_after = () if core.previous is None else (core.previous,)
        core.previous = event.index
    return event
