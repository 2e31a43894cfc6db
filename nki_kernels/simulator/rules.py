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
OURS = "decided here: the documentation is silent"
LANGUAGE = "NKI language guide: the Python subset"
LIBRARY = "NKI library: not one use in its kernels"
TRACER = "NKI 0.7 release notes: tracing frontend"

RULES = _table(
    (
        "sbuf-capacity",
        A,
        "live SBUF tiles fit the nominal bytes of a partition",
        "architecture guides: SBUF",
    ),
    ("sbuf-usable", S, "live SBUF tiles fit what the compiler leaves of a partition", OURS),
    (
        "psum-capacity",
        A,
        "live PSUM tiles fit the 8 banks of 2 KiB of a partition",
        "architecture guides: PSUM",
    ),
    (
        "psum-bank",
        A,
        "what a matmul writes lies in one 2 KiB bank (gen2, gen3)",
        "architecture guides: PSUM; API: nisa.nc_matmul",
    ),
    (
        "partitions",
        A,
        "at most 128 partitions",
        "architecture guides: SBUF; API: nl.tile_size.pmax",
    ),
    (
        "partition-start",
        A,
        "33-64 wide starts at 0, 64; wider at 0; else 0, 32, 64, 96",
        "architecture guides: start partition",
    ),
    ("partition-stride", A, "partitions are contiguous", "architecture guides: access patterns"),
    ("partition-view", A, "a view of an on-chip tile keeps axis 0", "API: NkiTensor views"),
    (
        "free-dimensions",
        A,
        "an operand has at most 4 free dimensions",
        "architecture guides: access patterns",
    ),
    (
        "buffer",
        A,
        "the operand lies where the instruction may touch it",
        "API: the instruction's page",
    ),
    (
        "engine-buffer",
        A,
        "the engine can reach the buffer (GpSimd: SBUF, DMA: not PSUM)",
        "architecture guides: engines; NKI 0.3 release notes: DMA and PSUM",
    ),
    ("engine", A, "the instruction runs on this engine", "API: the instruction's page"),
    (
        "both-psum",
        A,
        "at most one of the two inputs lies in PSUM",
        "API: nisa.tensor_tensor, tensor_tensor_scan, scalar_tensor_tensor, select_reduce",
    ),
    (
        "generation",
        A,
        "the instruction or argument exists on the target",
        "API: the instruction's page",
    ),
    (
        "nki-version",
        A,
        "the name exists in this version of NKI",
        "NKI 0.2, 0.6 and 0.7 release notes",
    ),
    (
        "size-limit",
        A,
        "the operand's size is within the instruction's limits",
        "API: the instruction's page",
    ),
    ("shape", A, "shapes fit together", "API: the instruction's page"),
    (
        "element-count",
        A,
        "operands have as many elements as each other",
        "API: the instruction's page",
    ),
    ("dtype", A, "the dtype is supported by the argument", "API: the instruction's page"),
    (
        "same-dtype",
        A,
        "two operands have the same dtype",
        "API: nisa.dma_copy (hwdge), dma_transpose, nc_transpose, tensor_copy_predicated",
    ),
    ("operator", A, "the operator is supported by the argument", "API: the instruction's page"),
    (
        "enum",
        A,
        "enumerations are given by name, not as numbers or strings",
        "NKI 0.3 release notes; API: nisa enumerations",
    ),
    ("value", A, "the value is one that the argument can take", "API: the instruction's page"),
    ("signature", A, "the arguments are those of the instruction", "API: the instruction's page"),
    ("index-bounds", A, "indices and slices lie inside the tensor", "API: NkiTensor indexing"),
    ("ap-bounds", A, "an access pattern stays inside the storage", "API: NkiTensor.ap"),
    (
        "ap-partition-stride",
        A,
        "an on-chip pattern begins with the storage's free size",
        "API: NkiTensor.ap",
    ),
    (
        "dma-bounds",
        A,
        "run-time rows lie inside the tensor, or oob_mode is skip",
        "API: nisa.dma_copy, oob_mode",
    ),
    ("view", A, "the view can be made without a copy", "API: NkiTensor views"),
    (
        "tensor-operator",
        A,
        "tensors have no Python operators and no tensor[...] = x: call nisa or nl",
        LANGUAGE,
    ),
    ("tensor-value", A, "what exists only at run time is not needed by Python", TRACER),
    (
        "nested-loop",
        A,
        "run-time loops are not nested",
        "NKI library: open issues on nested dynamic loops",
    ),
    ("endless-loop", A, "a loop on a register ends: session(loop_limit=...)", OURS),
    (
        "loop-scope",
        A,
        "a tensor made in the body of a run-time loop is used there only",
        "API: nl.fori_loop, nl.while_loop",
    ),
    (
        "schedule",
        A,
        "named instructions exist, and what waits for what has no circle and no loop's border",
        "API: nisa.NkiInstruction.depends_on; scheduling guide: with_schedule, no_reorder",
    ),
    (
        "accumulate-undefined",
        A,
        "an accumulator register was started before it is used",
        "API: nisa.reduce_cmd",
    ),
    ("session", A, "instructions run inside a kernel", OURS),
    (
        "core-barrier",
        A,
        "every core of the launch reaches the same barriers",
        "API: nisa.core_barrier, sendrecv",
    ),
    ("argument-dtype", A, "arrays given to a kernel have a dtype of the device", "API: nl dtypes"),
    (
        "output-unwritten",
        A,
        "an instruction wrote to each output",
        "NKI library: contributed kernels that returned zeros",
    ),
    ("old-compiler", A, "kernels do not import neuronxcc (from 0.4)", "NKI 0.4 release notes"),
    (
        "read-undefined",
        S,
        "every element that is read was written before",
        "API: nl.ndarray is uninitialised",
    ),
    (
        "no-output",
        S,
        "a kernel that writes an output returns it",
        "NKI 0.3 release notes: outputs are returned",
    ),
    (
        "accumulate-virgin",
        S,
        "accumulate=True adds to what a matmul wrote",
        "API: nisa.nc_matmul, accumulate",
    ),
    (
        "accumulate-foreign",
        S,
        "a matmul adds only to a matmul's result (gen2, gen3)",
        "API: nisa.nc_matmul, accumulate",
    ),
    (
        "undeclared-write",
        S,
        "an HBM input that is written is declared mutable",
        "API: nki.typing.mutable_tensor",
    ),
    (
        "output-buffer",
        S,
        "outputs lie in shared_hbm",
        "NKI 0.3 release notes; NKI 0.6 examples return nl.hbm",
    ),
    (
        "memset-type",
        S,
        "the value's type is the tile's: float for float, int for int",
        "API: nisa.memset",
    ),
    ("dma-engine", S, "engine= of a DMA goes with dge_mode.hwdge", "API stubs 0.6: nisa.dma_copy"),
    ("raw-dtype", S, "dtypes are nl's, not strings or numpy's", LANGUAGE),
    (
        "old-argument",
        S,
        "dtype= and mask= of older NKI are not given (without effect)",
        "NKI 0.2 release notes",
    ),
    ("python-is", S, "parser: == and !=, not is and is not", "NKI 0.3 release notes"),
    ("python-keyword-only", S, "parser: no keyword-only parameters", "NKI 0.3 release notes"),
    ("python-star-args", S, "parser: no *args and **kwargs", LANGUAGE),
    ("python-lambda", S, "parser: no lambda", f"{TRACER} allows it; {LIBRARY}"),
    ("python-comprehension", S, "parser: no comprehensions", f"{TRACER} allows them; {LIBRARY}"),
    (
        "python-generator",
        S,
        "parser: no generators and coroutines",
        f"{TRACER} allows them; {LIBRARY}",
    ),
    ("python-try", S, "parser: no try", f"{TRACER} allows it"),
    ("python-global", S, "parser: no global and nonlocal: kernels are pure", LANGUAGE),
    ("python-value", S, "parser: None, bool, int, float, str, tuple, list, dict of str", LANGUAGE),
    ("python-reflection", S, "parser: no reflection but isinstance", LANGUAGE),
    ("python-class", S, "parser: classes derive from nl.NKIObject alone, or are an Enum", LANGUAGE),
    ("python-source", S, "parser: the kernel's source can be read", OURS),
    ("list-argument", S, "parser: lists are given to a kernel as tuples", "NKI 0.3 release notes"),
    ("jit-option", S, "options of nki.jit have an effect", OURS),
    (
        "column-tiling",
        S,
        "the tensor engine is tiled by rows only: columns (0, 128)",
        "API: nisa.nc_matmul, tile_position and tile_size",
    ),
    (
        "enum-number",
        S,
        "dge_mode is given by name: 3 is dge_mode.none",
        "API: nisa.dge_mode; NKI library kernels give 3",
    ),
    (
        "numpy-operator",
        S,
        "operators are nl functions, not numpy's",
        "API: operators are nl functions",
    ),
)
