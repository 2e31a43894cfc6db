"""Are the tests worth something? Seed one fault at a time into a copy and see which test objects.

    make mutants        (python -m tests.nki.mutants [WORD ...]: those whose description has one)

Prints a table, mutant -> what caught it. Exit status 1 if one survives or no longer applies.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = Path("nki_kernels/simulator")
OPS = ("tests/nki/test_ops.py",)
REFUSALS = ("tests/nki/test_refusals.py",)
LANGUAGE = ("tests/nki/test_language.py",)
MEMORY = ("tests/nki/test_memory.py", "tests/nki/test_tensor.py")
LINT = ("tests/nki/test_lint.py",)
ADDRESSES = ("tests/nki/test_addresses.py",)
LOOPS = ("tests/nki/test_loops.py",)
GRIDS = ("tests/nki/test_grids.py",)
ORDER = ("tests/nki/test_order.py",)
CORES = ("tests/nki/test_cores.py",)
DTYPES = ("tests/nki/test_refused_dtypes.py",)


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in the file; `tests` are the files that should object."""

    about: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = OPS


MUTANTS = (
    Mutant("activation: bias dropped", "isa/activations.py",
           "    if bias is not None:\n", "    if False:\n"),
    Mutant("activation: scale added", "isa/activations.py",
           '"data") * column(scale', '"data") + column(scale'),
    Mutant("exponential: maximum added", "isa/activations.py",
           '"src") - column(max_value', '"src") + column(max_value'),
    Mutant("activation_reduce: registers not reset", "isa/activations.py",
           "reduce(Engine.scalar, commands.reset_reduce,",
           "reduce(Engine.scalar, commands.reduce,"),
    Mutant("tensor_tensor: operands swapped", "isa/elementwise.py",
           'op(read(data1, "data1"), read(data2, "data2"))',
           'op(read(data2, "data2"), read(data1, "data1"))'),
    Mutant("tensor_scalar: reverse0 ignored", "isa/elementwise.py",
           'data, "operand0", reverse=reverse0)', 'data, "operand0", reverse=False)'),
    Mutant("tensor_scalar: reverse1 ignored", "isa/elementwise.py",
           'data, "operand1", reverse=reverse1)', 'data, "operand1", reverse=False)'),
    Mutant("tensor_scalar: op1 dropped", "isa/elementwise.py",
           "    if op1 is not None:\n", "    if False:\n"),
    Mutant("scalar_tensor_tensor: reverse0 inverted", "isa/elementwise.py",
           "scalar, reverse=reverse0)", "scalar, reverse=not reverse0)"),
    Mutant("scalar_tensor_tensor: reverse1 ignored", "isa/elementwise.py",
           '"operand1"), reverse=reverse1)', '"operand1"), reverse=False)'),
    Mutant("reciprocal: of twice the data", "isa/elementwise.py",
           "dst.write(1 / rows", "dst.write(0.5 / rows"),
    Mutant("apply: reverse inverted", "isa/operands.py", "if reverse else", "if not reverse else"),
    Mutant("column: a number rounded to float16", "isa/operands.py",
           "return np.float32(value)", "return np.float32(np.float16(value))"),
    Mutant("tensor_reduce: negate dropped", "isa/reductions.py",
           "dst.write(-result if negate else result)", "dst.write(result)"),
    Mutant("scan: initial value ignored", "isa/reductions.py",
           "np.asarray(start, np.float32).reshape(-1)", "np.zeros(1, np.float32)"),
    Mutant("scan: reverse0 ignored", "isa/reductions.py",
           "if reverse0 else op0(first, state)", "if False else op0(first, state)"),
    Mutant("scan: reverse1 inverted", "isa/reductions.py",
           "if reverse1 else op1(inner, second)", "if not reverse1 else op1(inner, second)"),
    Mutant("scan: state not carried", "isa/reductions.py",
           "            np.add(result, second, out=result)\n            state = result\n",
           "            np.add(result, second, out=result)\n"),
    Mutant("cumulative: operands swapped", "isa/reductions.py",
           "op1(step, current)", "op1(current, step)"),
    Mutant("cumulative: register not kept", "isa/reductions.py",
           "register[:, 0], register[:, 1] = current, 1", "register[:, 1] = 1"),
    Mutant("tensor_scalar_reduce: negate dropped", "isa/reductions.py",
           "negate=reduce_res_negate)", "negate=False)"),
    Mutant("partition reduce: first partition dropped", "isa/reductions.py",
           "op.reduce(np.ascontiguousarray(values.T))",
           "op.reduce(np.ascontiguousarray(values[1:].T))"),
    Mutant("reduce registers: old value dropped", "isa/registers.py",
           "op(here[:, 0], op.reduce(values)[:, 0])", "op.reduce(values)[:, 0]"),
    Mutant("reduce registers: neutral element of min", "isa/registers.py",
           '"minimum": np.inf', '"minimum": 0.0'),
    Mutant("reduce registers: load_reduce ignored", "isa/registers.py",
           "np.asarray(initial).reshape(-1)", "0"),
    Mutant("matmul: accumulate ignored", "isa/matmul.py",
           "    if accumulate is False or", "    if not accumulate or"),
    Mutant("matmul: accumulate=False adds", "isa/matmul.py",
           "    if accumulate is False or (accumulate is None and not mine.any())",
           "    if not mine.any()"),
    Mutant("matmul: touched elements not noted", "isa/matmul.py",
           "    mine[...] = 1\n", "    mine[...] = 0\n"),
    Mutant("max8: ascending", "isa/search.py", "axis=1)[:, ::-1])", "axis=1))"),
    Mutant("find_index8: off by one", "isa/search.py", "found[hit, slot] = place[hit]",
           "found[hit, slot] = place[hit] + 1"),
    Mutant("find_index8: equal values do not advance", "isa/search.py",
           "        taken[partitions[hit], place[hit]] = True\n", ""),
    Mutant("find_index8: a miss is 0", "isa/search.py",
           "np.where(found < 0, np.iinfo(dst.dtype.dtype).max, found)", "np.maximum(found, 0)"),
    Mutant("match_replace8: slots in order", "isa/search.py",
           "range(SLOTS - 1, -1, -1)", "range(SLOTS)"),
    Mutant("shuffle: 255 is no mark", "isa/copies.py", "LEAVE = 255", "LEAVE = 254"),
    Mutant("shuffle: first quadrant for all", "isa/copies.py",
           "(kept - kept % QUADRANT) + entries[kept]", "entries[kept]"),
    Mutant("copy_predicated: reverse_pred ignored", "isa/copies.py",
           "!= 0) ^ reverse_pred", "!= 0)"),
    Mutant("select_reduce: inverted", "isa/selection.py",
           "np.where(chosen, rows(on_true", "np.where(~chosen, rows(on_true"),
    Mutant("range_select: second bound ignored", "isa/selection.py",
           "keep = first & (", "keep = first | ("),
    Mutant("range_select: start ignored", "isa/selection.py",
           "np.float32(range_start) + ", ""),
    Mutant("affine_select: inverted", "isa/patterns.py",
           "np.where(keep, values, cast", "np.where(~keep, values, cast"),
    Mutant("iota: channel multiplier ignored", "isa/patterns.py",
           "offset + channel_multiplier *", "offset + 0 *"),
    Mutant("n_gather: from the end", "isa/patterns.py",
           '(native(data, "data"), places, axis=1)',
           '(native(data, "data")[:, ::-1], places, axis=1)'),
    Mutant("bn_stats: odd and even swapped", "isa/statistics.py",
           "values[:, parity::2]", "values[:, 1 - parity :: 2]"),
    Mutant("bn_aggr: means not weighted", "isa/statistics.py",
           "(count * mean).sum(axis=1, keepdims=True) / total", "mean.mean(axis=1, keepdims=True)"),
    Mutant("dma_transpose: default axes of rank 4", "isa/dma.py",
           "4: (3, 1, 2, 0)", "4: (3, 2, 1, 0)"),
    Mutant("gather: skipped rows are written", "isa/dma.py",
           "for row in np.flatnonzero(inside):", "for row in range(inside.size):", MEMORY),
    Mutant("float to int: towards zero", "dtypes.py",
           "np.rint(values.astype(np.float64))", "np.trunc(values.astype(np.float64))"),
    Mutant("float to int: wraps", "dtypes.py",
           "np.clip(whole, bounds.min, bounds.max)", "whole"),
    Mutant("ap: offset replaces the view's", "access.py",
           "begin // new.itemsize + offset", "offset", MEMORY),
    Mutant("definedness: a write defines all", "memory.py",
           "if covers(shape, strides, self.raw.size // size):", "if True:", MEMORY),
    Mutant("scalar_load: int32 does not wrap", "scalars.py",
           "(value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)", "value", LANGUAGE),
    Mutant("NkiScalar: reversed minus not reversed", "scalars.py",
           "self._operand(other) - self.value", "self.value - self._operand(other)", LANGUAGE),
    Mutant("fori_loop: one step too few", "language/control.py",
           "range(bounds[0],", "range(bounds[0] + step,", LANGUAGE),
    Mutant("while_loop: ends at one", "language/control.py",
           "while register.value != 0:", "while register.value > 1:", LOOPS),
    Mutant("schedule: iterations overlap", "cost/schedule.py",
           "if before is not None and before != event.loop:", "if False:", ORDER),
    Mutant("depends_on: completion for an order of issue", "cost/schedule.py",
           "at = max(at, producer.start)", "at = max(at, producer.done)", ORDER),
    Mutant("select: run-time index without bounds", "tensor.py",
           "not 0 <= value < dynamic.limit", "False", ADDRESSES),
    Mutant("vector_select: rows of the slice not counted", "access.py",
           "inside &= (rows >= 0) & (rows < here.dynamic.limit)", "pass", ADDRESSES),
    Mutant("indirect: groups of 32 everywhere", "access.py",
           "32 if engine is Engine.tensor else 16", "32", ADDRESSES),
    Mutant("indirect: rows before columns", "access.py",
           "i % group, i // group]", "i // index.shape[1], i % index.shape[1]]", ADDRESSES),
    Mutant("tile grid: boundary not clamped", "language/grids.py",
           "max(0, (self.cells[-1] + 1) * self.cell - self.extent)", "0", GRIDS),
    Mutant("alloc_tiles: tiles lie column by column", "language/grids.py",
           "number * -(-axis.extent // axis.tile) + axis.start // axis.tile",
           "number + axis.start // axis.tile", GRIDS),
    Mutant("partition start: 40 is allowed", "instruction.py", "else 32\n", "else 8\n", REFUSALS),
    Mutant("psum bank: not checked", "isa/matmul.py",
           "if first // PSUM_BANK_BYTES !=", "if first // PSUM_BANK_BYTES < 0 !=", REFUSALS),
    Mutant("sendrecv: to itself", "isa/runtime.py",
           "(pipe_id, recv_from_rank, core.index)", "(pipe_id, core.index, recv_from_rank)", CORES),
    Mutant("activation_reduce: bias dropped", "isa/activations.py",
           "_activate(dst, op, data, bias, scale)\n    dst.write",
           "_activate(dst, op, data, None, scale)\n    dst.write"),
    Mutant("activate2: reverse0 for both steps", "isa/activations.py",
           '("imm1", op1, imm1, reverse1)', '("imm1", op1, imm1, reverse0)'),
    Mutant("exponential: initial sum ignored", "isa/activations.py",
           'column(reduce_init, "reduce_init"', 'column(0.0, "reduce_init"'),
    Mutant("prelu: slope everywhere", "alu.py",
           "np.where(x > 0, x, slope * x)", "np.where(x > 0, slope * x, slope * x)"),
    Mutant("erf_dx: half of it", "alu.py",
           "2 / math.sqrt(math.pi) * np.exp", "1 / math.sqrt(math.pi) * np.exp"),
    Mutant("fmod: sign of the divisor", "alu.py", "np.fmod", "np.mod"),
    Mutant("logical_xor: or", "alu.py", "np.logical_xor", "np.logical_or"),
    Mutant("invert: of two tensors", "alu.py", ' - {"invert"}', "", REFUSALS),
    Mutant("integers: exact on VectorE too", "isa/operands.py",
           "(engine is Engine.gpsimd and whole)", "whole"),
    Mutant("bits: a column of fractions is cut", "isa/operands.py",
           "        if value.dtype.is_float:\n", "        if False:\n", DTYPES),
    Mutant("cumulative: dtype of imm0", "isa/reductions.py",
           '("read", dtypes=frozenset({float32}), number', '("read", number', DTYPES),
    Mutant("cumulative: idle is taken", "isa/reductions.py",
           "    if reduce_cmd in (commands.idle, commands.reset):\n", "    if False:\n", REFUSALS),
    Mutant("tensor_reduce: bits are negated", "isa/reductions.py",
           'if negate and op.kind == "bitwise"', "if False", REFUSALS),
    Mutant("reduce registers: reset does nothing", "isa/registers.py",
           "(reduce_cmd.reset, reduce_cmd.reset_reduce)", "(reduce_cmd.reset_reduce,)"),
    Mutant("reduce registers: of the first partitions", "isa/registers.py",
           "state[at.start_partition : at.start_partition + at.shape[0]]",
           "state[: at.shape[0]]"),
    Mutant("reduce registers: neutral element of max", "isa/registers.py",
           '"maximum": -np.inf', '"maximum": 0.0'),
    Mutant("reduce registers: one set for all engines", "isa/registers.py",
           "here = started(engine,", "here = started(Engine.vector,"),
    Mutant("match_replace8: imm negated", "isa/search.py",
           "values[partition, found[partition, slot]] = imm",
           "values[partition, found[partition, slot]] = -imm"),
    Mutant("affine_select: on_false_value is cut", "isa/patterns.py",
           "cast(other, dst.dtype) if exact", "np.trunc(other).astype(np.int64) if exact"),
    Mutant("iota: steps without sign", "isa/patterns.py",
           "step * np.arange(number)", "abs(step) * np.arange(number)"),
    Mutant("dma_copy: skipped rows are scattered", "isa/dma.py",
           "return places, inside & gathered", "return places, inside"),
    Mutant("dma_compute: the last gather decides", "isa/dma_sum.py",
           "here if inside is None else inside & here", "here"),
    Mutant("dma_compute: any rows of dst are dst", "isa/dma_sum.py",
           "np.array_equal(indirect_places(one)[0], indirect_places(other)[0])",
           "one.shape == other.shape"),
    Mutant("dma_compute: equal rows count once", "isa/dma_sum.py",
           "    if unique:\n", "    if True:\n"),
    Mutant("nc_matmul_mx: accumulate dropped", "isa/mx.py",
           'moving_scale, "moving"), accumulate)', 'moving_scale, "moving"), None)'),
    Mutant("rng: VectorE's generators in blocks", "isa/random.py",
           "out.transpose(1, 0, 2)", "out.transpose(1, 2, 0)"),
    Mutant("dropout: inverted", "isa/random.py",
           "uniform(V, data) < column", "uniform(V, data) >= column"),
    Mutant("to bool: positive numbers", "dtypes.py",
           "np.not_equal(values, 0)", "np.greater(values, 0)"),
    Mutant("tfloat32: ties away from zero", "dtypes.py",
           "np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))", "np.uint32(0x1000)"),
    Mutant("NaN to an integer: 1", "dtypes.py",
           "np.where(np.isnan(whole), 0,", "np.where(np.isnan(whole), 1,"),
    Mutant("lint: helpers are not read", "lint/sources.py",
           "        queue += source.names\n", "", LINT),
)  # fmt: skip


def verdict(mutant: Mutant, copy: Path) -> str:
    """The test that objects to the mutant; empty if none does."""
    file = copy / PACKAGE / mutant.file
    source = file.read_text()
    if source.count(mutant.old) != 1:
        return f"DOES NOT APPLY ({source.count(mutant.old)} times in {mutant.file})"
    file.write_text(source.replace(mutant.old, mutant.new))
    try:
        return objection(mutant.tests, copy)
    finally:
        file.write_text(source)


def objection(tests: tuple[str, ...], copy: Path) -> str:
    """The first test that fails in the copy; empty if all pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "--tb=no", *tests],
        cwd=copy, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/nki/)?(\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and found:
        return found[1]
    return "" if done.returncode == 0 else f"DOES NOT RUN: {done.stdout[-300:]}"


def main(words: list[str]) -> int:
    """Try all mutants (those whose description has one of the words); the exit status."""
    chosen = [one for one in MUTANTS if not words or any(word in one.about for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("nki_kernels", "tests/nki"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        (copy / "tests/__init__.py").touch()
        shutil.copy(ROOT / "pyproject.toml", copy)
        files = tuple(dict.fromkeys(file for mutant in chosen for file in mutant.tests))
        if failed := objection(files, copy):
            print(f"the simulator as it is fails {failed}")
            return 1
        for mutant in chosen:
            caught = verdict(mutant, copy)
            bad = not caught or caught.startswith("DOES NOT")
            survivors += bad
            print(f"{mutant.about:<45} {caught or 'SURVIVES'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
