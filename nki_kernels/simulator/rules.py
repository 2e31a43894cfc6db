"""The one table of what is refused: name, mode, what it says, source.

`always`: physically impossible, or without a meaning. `strict`: the vendor's own simulator lets it
pass and working kernels do it; an error with `session(strict=True)`, else a warning given once.
The documentation's page and the refusal tests are made from this table.
"""

from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """When a broken rule is an error."""

    ALWAYS = "always"
    STRICT = "strict"


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    name: str
    mode: Mode
    says: str
    source: str


def _table(*rows: tuple[str, Mode, str, str]) -> dict[str, Rule]:
    return {row[0]: Rule(*row) for row in rows}


A, S = Mode.ALWAYS, Mode.STRICT
API, ARCH, NOTES = "API reference", "architecture guide", "release notes"
OURS = "decided here, the documentation is silent"

RULES = _table(
    ("sbuf-capacity", A, "live SBUF tiles fit the nominal bytes of a partition", ARCH),
    ("sbuf-usable", S, "live SBUF tiles fit what the compiler leaves of a partition", OURS),
    ("psum-capacity", A, "live PSUM tiles fit the 8 banks of 2 KiB of a partition", ARCH),
    ("psum-bank", A, "what a matmul writes lies in one 2 KiB bank (gen2, gen3)", ARCH),
    ("partitions", A, "at most 128 partitions", ARCH),
    ("partition-start", A, "33-64 wide starts at 0, 64; wider at 0; else 0, 32, 64, 96", ARCH),
    ("partition-stride", A, "partitions are contiguous", ARCH),
    ("partition-view", A, "a view of an on-chip tile keeps axis 0", API),
    ("free-dimensions", A, "an operand has at most 4 free dimensions", ARCH),
    ("buffer", A, "the operand lies where the instruction may touch it", API),
    ("engine-buffer", A, "the engine can reach the buffer (GpSimd: SBUF, DMA: not PSUM)", ARCH),
    ("engine", A, "the instruction runs on this engine", API),
    ("both-psum", A, "at most one of the two inputs lies in PSUM", API),
    ("generation", A, "the instruction or argument exists on the target", API),
    ("nki-version", A, "the name exists in this version of NKI", NOTES),
    ("size-limit", A, "the operand's size is within the instruction's limits", API),
    ("shape", A, "shapes fit together", API),
    ("element-count", A, "operands have as many elements as each other", API),
    ("dtype", A, "the dtype is supported by the argument", API),
    ("same-dtype", A, "two operands have the same dtype", API),
    ("operator", A, "the operator is supported by the argument", API),
    ("enum", A, "enumerations are given by name, not as numbers or strings", API),
    ("value", A, "the value is one that the argument can take", API),
    ("signature", A, "the arguments are those of the instruction", API),
    ("index-bounds", A, "indices and slices lie inside the tensor", API),
    ("ap-bounds", A, "an access pattern stays inside the storage", API),
    ("ap-partition-stride", A, "an on-chip pattern begins with the storage's free size", API),
    ("dma-bounds", A, "indirect rows lie inside the tensor, or oob_mode is skip", API),
    ("view", A, "the view can be made without a copy", API),
    ("tensor-operator", A, "tensors have no Python operators: call nisa or nl", API),
    ("tensor-value", A, "a tensor's values are not known while the kernel is built", API),
    ("accumulate-undefined", A, "an accumulator register was started before it is used", API),
    ("session", A, "instructions run inside a kernel", OURS),
    ("core-barrier", A, "every core of the launch reaches the same barriers", API),
    ("argument-dtype", A, "arrays given to a kernel have a dtype of the device", API),
    ("old-compiler", A, "kernels do not import neuronxcc (from 0.4)", NOTES),
    ("read-undefined", S, "every element that is read was written before", API),
    ("accumulate-virgin", S, "accumulate=True adds to what a matmul wrote", API),
    ("accumulate-foreign", S, "a matmul adds only to a matmul's result (gen2, gen3)", API),
    ("undeclared-write", S, "an HBM input that is written is declared mutable", API),
    ("output-buffer", S, "outputs lie in shared_hbm", NOTES),
    ("memset-type", S, "the value's type is the tile's: float for float, int for int", API),
    ("old-argument", S, "dtype= and mask= of older NKI are not given (without effect)", NOTES),
    ("python-is", S, "parser: == and !=, not is and is not", NOTES),
    ("python-keyword-only", S, "parser: no keyword-only parameters", NOTES),
    ("python-star-args", S, "parser: no *args and **kwargs", API),
    ("python-lambda", S, "parser: no lambda", API),
    ("python-comprehension", S, "parser: no comprehensions", API),
    ("python-generator", S, "parser: no generators and coroutines", API),
    ("python-try", S, "parser: no try", API),
    ("python-global", S, "parser: no global and nonlocal: kernels are pure", API),
    ("python-value", S, "parser: None, bool, int, float, str, tuple, list, dict of str", API),
    ("python-reflection", S, "parser: no reflection but isinstance", API),
    ("python-class", S, "parser: classes derive from nl.NKIObject alone, or are an Enum", API),
    ("python-source", S, "parser: the kernel's source can be read", OURS),
    ("list-argument", S, "parser: lists are given to a kernel as tuples", NOTES),
    ("jit-option", S, "options of nki.jit have an effect", OURS),
    ("numpy-operator", S, "operators are nl functions, not numpy's", API),
)
