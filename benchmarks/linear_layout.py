"""How fast float32 linear layers run on this CPU, by the layout of their weights and the call.

    python benchmarks/linear_layout.py [--rows 1,2,4,32] [--write]

Part 1 times the 99 matrices of a 125M-parameter model (too many for any cache), part 2 single
layers that stay in cache: how large one must be for oneDNN's cost per call to pay.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear
from tqdm import tqdm

from benchmarks.report import Spread, environment, footer, table, write

MODEL = [*[(768, 768)] * 56, *[(2048, 768)] * 28, *[(768, 2048)] * 14, (32000, 768)]
SINGLE = [(128, 128), (256, 256), (512, 256), (512, 512), (768, 768), (2048, 768)]
PLAIN, PACKED = "F.linear", "oneDNN, packed for 32 rows"

Call = Callable[[Tensor], Tensor]


def layouts(weight: Tensor) -> dict[str, Call]:
    """Every way to compute x W^T for x (rows, in), each with its own copy of `weight` (out, in)."""
    pointwise, reorder = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight
    one, many = reorder(weight, 1), reorder(weight, 32)
    turned = weight.t().contiguous()
    calls: dict[str, Call] = {
        PLAIN: lambda x: linear(x, weight),
        "torch.mv (1 row)": lambda x: torch.mv(weight, x[0]),
        "(W x^T)^T": lambda x: (weight @ x.t()).t(),
        "x W, W stored as (in, out)": lambda x: x @ turned,
        "oneDNN, plain weight": lambda x: pointwise(x, weight, None, "none", [], ""),
        "oneDNN, packed for 1 row": lambda x: pointwise(x, one, None, "none", [], ""),
        PACKED: lambda x: pointwise(x, many, None, "none", [], ""),
    }
    if torch.backends.mkl.is_available():
        mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, 1)
        calls["MKL, packed"] = lambda x: torch.ops.mkl._mkl_linear(x, mkl, weight, None, 1)
    return calls


def race(
    calls: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1
) -> dict[str, Spread]:
    """Milliseconds per call, all calls in turn in each round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            taken[name].append((time.perf_counter() - start) * 1e3 / repeat)
    return {name: Spread.of(times) for name, times in taken.items()}


def run(calls: list[Call], inputs: list[Tensor]) -> None:
    """Each call on its input, in order."""
    for call, x in zip(calls, inputs, strict=True):
        call(x)


def whole_model(rows: list[int], rounds: int) -> dict[str, dict[int, Spread]]:
    """Part 1: milliseconds for all matrices of MODEL, by layout and number of rows."""
    ways = [layouts(torch.randn(shape) * 0.02) for shape in MODEL]
    inputs = {(m, k): torch.randn(m, k) for m in rows for k in (768, 2048)}
    result: dict[str, dict[int, Spread]] = {}
    for m in tqdm(rows, desc="whole model"):
        names = [name for name in ways[0] if m == 1 or "1 row)" not in name]
        xs = [inputs[m, k] for _, k in MODEL]
        calls = {name: partial(run, [way[name] for way in ways], xs) for name in names}
        for name, spread in race(calls, rounds if m < 64 else 3).items():
            result.setdefault(name, {})[m] = spread
    return result


def single_layers(rows: list[int], rounds: int) -> dict[str, dict[int, Spread]]:
    """Part 2: time of packed over plain for layers in cache, by size and number of rows."""
    result: dict[str, dict[int, Spread]] = {}
    for shape in tqdm(SINGLE, desc="single layers"):
        ways, name = layouts(torch.randn(shape)), f"{shape[0]} x {shape[1]}"
        for m in rows:
            x = torch.randn(m, shape[1])
            calls = {way: partial(ways[way], x) for way in (PLAIN, PACKED)}
            times = race(calls, rounds * 5, repeat=20)
            plain, packed = times[PLAIN], times[PACKED]
            result.setdefault(name, {})[m] = Spread(
                packed.median / plain.median, packed.low / plain.high, packed.high / plain.low
            )
    return result


def render(result: dict[str, dict[int, Spread]], rows: list[int], digits: int) -> str:
    """One line per layout or size, one column per number of rows."""
    lines = [
        [name, *[times[m].show(digits) if m in times else "" for m in rows]]
        for name, times in result.items()
    ]
    return table(["", *[f"{m} row{'s' * (m > 1)}" for m in rows]], lines)


def main() -> None:
    """Measure, print, and write docs/results/linear_layout.* if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default="1,2,3,4,8,32,128,512", help="rows to time, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="write docs/results/linear_layout.*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [int(m) for m in args.rows.split(",")]
    few = [m for m in rows if m <= 32]
    with torch.inference_mode():
        model, single = whole_model(rows, args.rounds), single_layers(few, args.rounds)
    setting = environment()
    page = (
        "# Weight layouts of linear layers\n\n"
        "All 99 matrices of a 125M-parameter float32 model, milliseconds, median (min-max):\n\n"
        + render(model, rows, 0)
        + "\nOne layer that stays in cache, time of oneDNN packed over F.linear:\n\n"
        + render(single, few, 2)
        + "\n"
        + footer(setting)
    )
    print(page)
    if args.write:
        write("linear_layout", {"environment": setting, "model": model, "single": single}, page)


if __name__ == "__main__":
    main()
