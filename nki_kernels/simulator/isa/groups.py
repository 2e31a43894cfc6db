"""GpSimd's eight cores, each on its 16 partitions: local_gather, nonzero_with_count, topk;
and sequence_bounds on one partition."""

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, bfloat16, float32, int32, uint16, uint32
from nki_kernels.simulator.errors import NkiNotSimulated, kernel_line, text
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import SBUF, Call, Check, Operand, instruction
from nki_kernels.simulator.isa.operands import native
from nki_kernels.simulator.tensor import NkiTensor

G = Engine.gpsimd
GROUP = 16  # partitions of a GpSimd core
MOST_INDICES = 4096  # per core
COUNTS = frozenset({float32, int32})


def _whole_groups(name: str) -> Check:
    def check(call: Call) -> None:
        tensor = call.arguments[name]
        if tensor.shape[0] % GROUP:
            refuse("size-limit", name, f"a multiple of {GROUP} partitions", tensor)

    return check


def _gathered(call: Call) -> None:
    dst, index, width, valid = (
        call.arguments[name] for name in ("dst", "index", "num_elem_per_idx", "num_valid_indices")
    )
    most = GROUP * index.free
    valid = call.arguments["num_valid_indices"] = most if valid is None else valid
    if width not in (1, 2, 4, 8, 16, 32):
        refuse("value", "num_elem_per_idx", "1, 2, 4, 8, 16 or 32", width)
    if not 1 <= valid <= most:
        refuse("value", "num_valid_indices", f"1..{most}, the indices of a core", valid)
    if most > MOST_INDICES:
        refuse("size-limit", "index", f"<= {MOST_INDICES} indices per core", most)
    if dst.free != valid * width:
        refuse("element-count", "dst", f"{valid * width} elements per partition", dst)


@instruction(
    G,
    dst=Operand("write", SBUF),
    src_buffer=Operand("read", SBUF),
    index=Operand("read", SBUF, frozenset({uint16})),
    checks=[
        checks.same_partitions("src_buffer", "index", "dst"),
        checks.same_dtype("src_buffer", "dst"),
        _whole_groups("src_buffer"),
        _gathered,
    ],
)
def local_gather(
    dst: NkiTensor,
    src_buffer: NkiTensor,
    index: NkiTensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
) -> None:
    """In each group of 16 partitions: the group's indices, down the partitions first, say where
    in the row each of its partitions reads `num_elem_per_idx` elements."""
    places = native(index, "index").astype(np.int64)
    groups = len(places) // GROUP
    order = places.reshape(groups, GROUP, -1).swapaxes(1, 2).reshape(groups, -1)
    first = order[:, :num_valid_indices, None]
    columns = (first + np.arange(num_elem_per_idx)).reshape(groups, 1, -1)
    if columns.max() >= src_buffer.free:
        refuse("dma-bounds", "index", f"elements below {src_buffer.free}", int(columns.max()))
    rows = native(src_buffer, "src_buffer").reshape(groups, GROUP, -1)
    dst.write(np.take_along_axis(rows, columns, axis=2).reshape(len(places), -1))


def _one_more(call: Call) -> None:
    (_, dst), (_, src) = call.tensors("dst", "src")
    if dst.free != src.free + 1:
        refuse("element-count", "dst", f"{src.free + 1} elements per partition", dst)


@instruction(
    G,
    dst=Operand("write", SBUF, frozenset({int32})),
    src=Operand("read", SBUF, COUNTS),
    checks=[checks.same_partitions("src", "dst"), _one_more],
    generations=(3, 4),
)
def nonzero_with_count(
    dst: NkiTensor, src: NkiTensor, index_offset: int = 0, padding_val: int = -1
) -> None:
    """On partitions 0, 16 ... 112: `index_offset` + the columns that are not 0, then
    `padding_val`, and their number in the last of dst's T + 1 columns. Others stay as they are."""
    for row in range(-src.start_partition % GROUP, src.shape[0], GROUP):
        found = np.flatnonzero(src[row : row + 1].read("src").reshape(-1))
        line = np.full(dst.free, padding_val, np.int64)
        line[: len(found)] = found + index_offset
        line[-1] = len(found)
        dst[row : row + 1].write(line)


def _top(call: Call) -> None:
    val_dst, idx_dst, src, n = (call.arguments[k] for k in ("val_dst", "idx_dst", "src", "n"))
    k = val_dst.free
    if not 8 <= n < 65536 or n > GROUP * src.free:
        refuse("value", "n", f"8..65535 and at most src's {GROUP * src.free} of a group", n)
    if k > min(n, 32767):
        refuse("size-limit", "val_dst", f"1..{min(n, 32767)} elements per partition", val_dst)
    if idx_dst.free != k:
        refuse("element-count", "idx_dst", f"{k} elements per partition, as val_dst", idx_dst)
    if call.arguments["sorted"]:
        why = "the order that sorted=True gives is not described"
        raise NkiNotSimulated(f"topk(sorted): not simulated ({why}) at {text(kernel_line())}")


@instruction(
    G,
    val_dst=Operand("write", SBUF, frozenset({bfloat16})),
    idx_dst=Operand("write", SBUF, frozenset({uint32})),
    src=Operand("read", SBUF, frozenset({bfloat16})),
    checks=[
        checks.same_partitions("src", "val_dst", "idx_dst"),
        _whole_groups("src"),
        _top,
    ],
    generations=(3, 4),
    since="0.6",
)
def topk(
    val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int, sorted: bool = False
) -> None:
    """In each group of 16 partitions the k largest of its first `n` elements, in ascending order.

    Elements run down the group's partitions and then along the free axis, those of src and those
    of the results; k is the free size of `val_dst`, whose later columns are not written. Of equal
    values the lowest indices are taken (decided here).
    """
    k = val_dst.free
    for start in range(0, src.shape[0], GROUP):
        values = _snake(src, start, n)
        best = np.argsort(-values.astype(np.float32), kind="stable")[:k][::-1]
        for column in range(-(-k // GROUP)):
            part = best[column * GROUP : (column + 1) * GROUP]
            place = slice(start, start + len(part)), slice(column, column + 1)
            val_dst[place].write(values[part])
            idx_dst[place].write(part)


def _snake(src: NkiTensor, start: int, count: int) -> Array:
    """The first `count` elements of a group, down the partitions first."""
    tile = src.reshape((src.shape[0], src.free))[start : start + GROUP]
    whole, rest = divmod(count, GROUP)
    parts = [tile[:, :whole].read("src").T.reshape(-1)] if whole else []
    if rest:
        parts.append(tile[:rest, whole : whole + 1].read("src").reshape(-1))
    return np.concatenate(parts)


def _two_rows(call: Call) -> None:
    (_, dst), (_, ids) = call.tensors("dst", "segment_ids")
    if dst.shape != (1, 2, ids.free):
        refuse("shape", "dst", f"shape (1, 2, {ids.free})", dst)


@instruction(
    G,
    dst=Operand("write", SBUF, COUNTS, max_partitions=1),
    segment_ids=Operand("read", SBUF, COUNTS, max_partitions=1),
    checks=[_two_rows],
)
def sequence_bounds(dst: NkiTensor, segment_ids: NkiTensor) -> None:
    """For each element of (1, n): where its run of equal ids begins, and where it ends (the first
    index behind it); n and -1 for elements of id 0, which are padding. dst is (1, 2, n)."""
    ids = native(segment_ids, "segment_ids")[0]
    edge = np.concatenate([[True], ids[1:] != ids[:-1], [True]])
    run, edges = np.cumsum(edge[:-1]) - 1, np.flatnonzero(edge)
    padding = ids == 0
    begin = np.where(padding, len(ids), edges[run])
    dst.write(np.stack([begin, np.where(padding, -1, edges[run + 1])]))
