"""Rules over several operands of an instruction, to be named in its declaration."""

from collections.abc import Callable

from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.instruction import Call, Check
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor


def _alike(
    names: tuple[str, ...], rule: str, of: Callable[[NkiTensor], object], unit: str = ""
) -> Check:
    def check(call: Call) -> None:
        (first, one), *others = call.tensors(*names)
        for name, other in others:
            if of(other) != of(one):
                refuse(rule, name, f"{of(one)}{unit}, as {first}", other)

    return check


def same_partitions(*names: str) -> Check:
    """The operands have the same number of partitions."""
    return _alike(names, "shape", lambda tensor: tensor.shape[0], " partitions")


def same_elements(*names: str) -> Check:
    """The operands have the same number of elements."""
    return _alike(names, "element-count", lambda tensor: tensor.size, " elements")


def elementwise(*names: str) -> Check:
    """Same number of partitions and of elements."""
    partitions, elements = same_partitions(*names), same_elements(*names)

    def check(call: Call) -> None:
        partitions(call)
        elements(call)

    return check


def same_dtype(*names: str) -> Check:
    """The operands have the same dtype."""
    return _alike(names, "same-dtype", lambda tensor: tensor.dtype)


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
