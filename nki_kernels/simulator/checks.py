"""Rules over several operands of an instruction, to be named in its declaration."""

from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.instruction import Call, Check
from nki_kernels.simulator.memory import Buffer


def same_partitions(*names: str) -> Check:
    """The operands have the same number of partitions."""

    def check(call: Call) -> None:
        (first, one), *others = call.tensors(*names)
        for name, other in others:
            if other.shape[0] != one.shape[0]:
                refuse("shape", name, f"{one.shape[0]} partitions, as {first}", other)

    return check


def same_elements(*names: str) -> Check:
    """The operands have the same number of elements."""

    def check(call: Call) -> None:
        (first, one), *others = call.tensors(*names)
        for name, other in others:
            if other.size != one.size:
                refuse("element-count", name, f"{one.size} elements, as {first}", other)

    return check


def elementwise(*names: str) -> Check:
    """Same number of partitions and of elements."""
    partitions, elements = same_partitions(*names), same_elements(*names)

    def check(call: Call) -> None:
        partitions(call)
        elements(call)

    return check


def same_dtype(*names: str) -> Check:
    """The operands have the same dtype."""

    def check(call: Call) -> None:
        (first, one), *others = call.tensors(*names)
        for name, other in others:
            if other.dtype != one.dtype:
                refuse("same-dtype", name, f"{one.dtype}, as {first}", other)

    return check


def not_both_psum(*names: str) -> Check:
    """At most one of the operands lies in PSUM."""

    def check(call: Call) -> None:
        inside = [name for name, tensor in call.tensors(*names) if tensor.buffer is Buffer.psum]
        if len(inside) > 1:
            refuse("both-psum", inside[1], "at most one input in PSUM", " and ".join(inside))

    return check


def bitwise_integers(*operators: str, operands: tuple[str, ...]) -> Check:
    """Bitwise operators go with integers, and with each other."""

    def check(call: Call) -> None:
        used = [call.arguments[name] for name in operators if call.arguments[name] is not None]
        bits = [op for op in used if op.kind == "bitwise"]
        if not bits:
            return
        if len(bits) < len(used):
            refuse("operator", operators[-1], "both operators bitwise or none", used[-1].name)
        for name, tensor in call.tensors(*operands):
            if tensor.dtype.is_float:
                refuse("dtype", name, f"integers for {bits[0].name}", tensor)

    return check


def from_generation(number: int, argument: str, *, unless: object = None) -> Check:
    """An argument that older targets do not have."""

    def check(call: Call) -> None:
        if current().generation.number < number and call.arguments[argument] != unless:
            refuse("generation", argument, f"gen{number} or newer", current().generation.name)

    return check
