"""Modelled times of the Mamba tutorial's kernels against the times that were published for trn1.

Runs the three scans of tests/nki/kernels/mamba.py in the simulator and prints the model's time,
the measured one and their ratio. Nothing is measured here: the measured times are the vendor's.
At 8,192 tokens two and four of the 32 channel tiles run, and the rest is extrapolated: each tile
does the same work.

    python -m benchmarks.nki_anchors [--write]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from importlib import import_module

import numpy as np

from benchmarks.report import require_green, table, write
from nki_kernels import simulator
from nki_kernels.simulator.cost import LABEL
from nki_kernels.simulator.cost.constants import TABLE
from nki_kernels.simulator.cost.cycles import FORMULAS
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.hardware import GENERATIONS
from nki_kernels.simulator.report import Report

STATES, PARTITIONS = 16, 128
FAIR = (0.6, 1.6)
COMPUTED = "tests/nki/test_anchors.py::test_the_kernels_compute_the_scan"


@dataclass(frozen=True)
class Anchor:
    """A published time of one kernel; `tiles`: how many channel tiles are run here."""

    kernel: str
    channels: int
    tokens: int
    measured_us: float
    tiles: tuple[int, ...]


ANCHORS = (
    Anchor("mamba_v1", 256, 512, 172.93, (2,)),
    Anchor("mamba_v1", 4096, 512, 2340, (32,)),
    Anchor("mamba_v2", 4096, 512, 1610, (32,)),
    Anchor("mamba_v2", 4096, 8192, 53_300, (2, 4)),
    Anchor("mamba_v3", 4096, 8192, 27_800, (2, 4)),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; times in microseconds, all but `measured_us` modelled."""

    kernel: str
    channels: int
    tokens: int
    measured_us: float
    modelled_us: float
    lower_bound_us: float
    ratio: float
    bound_by: str
    sbuf_peak: int
    refused: bool
    extrapolated_from: tuple[int, ...]


def modelled(kernel: str, channels: int, tokens: int) -> tuple[Report, bool]:
    """The report of one run, and whether it was refused for the size of its tiles."""
    mamba = import_module("tests.nki.kernels.mamba")  # imports nki: only once it is installed
    rng = np.random.default_rng(0)
    arrays: list[Array] = [
        rng.uniform(0.01, 0.2, (channels, tokens)).astype(np.float32),
        rng.standard_normal((channels, tokens)).astype(np.float32),
        -rng.uniform(0.5, 4, (channels, STATES)).astype(np.float32),
        *(rng.standard_normal((STATES, tokens)).astype(np.float32) for _ in range(2)),
    ]
    refused = False
    with simulator.session(target="trn1", nki="0.6") as run:
        try:
            getattr(mamba, kernel)(*arrays)
        except simulator.NkiValidationError as error:
            if error.rule != "sbuf-capacity":
                raise
            refused = True
    return run.report(), refused


def line(anchor: Anchor) -> Row:
    """Model one anchor, from fewer tiles where it says so."""
    whole = anchor.channels // PARTITIONS
    runs = [modelled(anchor.kernel, PARTITIONS * n, anchor.tokens) for n in anchor.tiles]
    times = [(report.schedule_us, report.lower_bound_us) for report, _ in runs]
    schedule, bound = times[-1]
    if anchor.tiles[-1] < whole:
        span = (whole - anchor.tiles[-1]) / (anchor.tiles[-1] - anchor.tiles[0])
        schedule, bound = (last + (last - first) * span for first, last in zip(*times, strict=True))
        schedule = max(schedule, bound)  # few tiles hide some work that many cannot
    report, refused = runs[-1]
    return Row(
        *(anchor.kernel, anchor.channels, anchor.tokens, anchor.measured_us),
        *(round(schedule, 2), round(bound, 2), round(schedule / anchor.measured_us, 3)),
        *(report.cores[0].bound_by, report.cores[0].sbuf_peak, refused),
        anchor.tiles if anchor.tiles[-1] < whole else (),
    )


def rows_of(rows: list[Row]) -> str:
    """The table of anchors."""
    header = ["kernel", "D", "L", "measured (us)", "modelled (us)", "lower bound (us)", "ratio"]
    header += ["SBUF peak (bytes)", "remarks"]
    return table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    remarks = ["does not fit: refused"] if row.refused else []
    if row.extrapolated_from:
        first, last = row.extrapolated_from
        remarks.append(f"extrapolated from {first} and {last} of {row.channels // 128} tiles")
    return [
        *(row.kernel, f"{row.channels:,}", f"{row.tokens:,}", f"{row.measured_us:,.2f}"),
        *(f"{row.modelled_us:,.2f}", f"{row.lower_bound_us:,.2f}", f"{row.ratio:.2f}"),
        *(f"{row.sbuf_peak:,}", "; ".join(remarks)),
    ]


def page(rows: list[Row]) -> str:
    """The Markdown page."""
    outside = [row for row in rows if not FAIR[0] <= row.ratio <= FAIR[1]]
    names = ", ".join(f"{row.kernel} at L = {row.tokens:,}" for row in outside) or "none"
    constants = table(
        ["constant", "value", "unit", "generations", "status", "source"],
        [
            [
                *(c.name, f"{c.value:g}", c.unit, ", ".join(map(str, c.generations))),
                *(c.status.value, c.source),
            ]
            for c in TABLE
        ],
    )
    formulas = table(
        ["instruction", "cycles", "status"],
        [[name, cost.text, cost.status.value] for name, cost in FORMULAS.items()],
    )
    return PAGE.format(
        label=LABEL,
        rows=rows_of(rows),
        names=names,
        spill=_spilled(next(row for row in rows if row.refused)),
        short=rows[0].measured_us - rows[0].modelled_us,
        least=1 - max(row.ratio for row in rows if not row.refused),
        most=1 - min(row.ratio for row in rows if not row.refused),
        constants=constants,
        formulas=formulas,
    )


def _spilled(row: Row) -> str:
    """How much traffic would make up for the time that is missing where tiles do not fit."""
    missing = row.measured_us - row.modelled_us
    moved = missing * 1e-6 * GENERATIONS[2].dma_rate
    once = row.channels * row.tokens * STATES * 4
    return (
        f"{missing / 1000:,.1f} ms are missing, what {moved / 1e9:,.1f} GB take at the full DMA"
        f" rate:\n  {moved / once:.1f} times one float32 for each channel, token and state"
    )


PAGE = """# Modelled times against published ones

Times of the simulator's cost model ({label}) for the three fused Mamba scans of the
public NKI tutorial, next to the times that the tutorial gives for trn1 (S = 16, float32). The
kernels are ours, of the same structure: v1 loads delta and u again for every state, v2 keeps them
on the chip, v3 goes in blocks of 512 tokens. B and C reach all partitions through PSUM, by a matmul
with ones. Ratio is modelled / measured. `python -m benchmarks.nki_anchors --write` makes this page.

{rows}
Outside 0.6-1.6: {names}.

## What the model misses

- **Spilling.** v2 at L = 8,192 needs more SBUF than trn1 has, and the simulator refuses it; the
  time in the table is what it would take if it fitted. The vendor's compiler of that time ran it by
  moving tiles to HBM and back. {spill},
  as if about two tiles of each state were written and read back (inferred). A kernel that the
  simulator refuses has no meaningful time.
- **Start and end of a kernel.** The model starts with the first DMA and ends with the last. In the
  smallest case {short:.0f} us are missing, more than its structure explains.
- **What the compiler adds**: copies, semaphores, DMA descriptors. The times of the kernels that
  fit are modelled {least:.0%} to {most:.0%} below the measured ones.
- **Prefetching is free.** A tile that is allocated in a loop is another buffer each time, so loads
  run ahead as far as data allows. Capacity is checked in program order only.
- **Not modelled at all**: descriptors that GpSimd makes for gathers, DMAs to few partitions that
  share ports, HBM shared by the cores of a chip, the run-time control flow's own instructions.

The cost of a dependent instruction (100 cycles) stands in the vendor's guide only as "about"; v2
at L = 512 fits best with 95. It is the one constant that these anchors speak about, and it was not
fitted to them further. How the tutorial's compiler places B and C is our reading: kept in SBUF
instead of PSUM they would cost VectorE two cycles more per element and state. No formula had to be
replaced by another to come near the anchors.

## Constants

Clocks and DMA rates are the documented ones of each generation (`hardware.py`). "Old documentation"
is that of SDK 2.26, the last with cycle formulas; "inferred" is ours and no figure of the vendor.

{constants}
## Formulas

N: elements per partition of the largest operand; M: columns of the stationary operand. What runs on
GpSimd and has no formula of its own there takes GPSIMD_START more than on VectorE (inferred).

{formulas}"""


def main() -> None:
    """Print the table; with --write keep it in docs/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/nki_anchors.*")
    options = parser.parse_args()
    require_green("tests/nki/test_cost.py", "tests/nki/test_schedule.py", COMPUTED)
    simulator.install()
    rows = []
    for anchor in ANCHORS:
        rows.append(line(anchor))
        row = rows[-1]
        print(
            f"{row.kernel} D={row.channels} L={row.tokens}: modelled {row.modelled_us:,.2f} us,"
            f" measured by the vendor {row.measured_us:,.2f} us, ratio {row.ratio:.2f}"
            f"{' (does not fit: refused)' if row.refused else ''}",
            flush=True,
        )
    if options.write:
        result = {"label": LABEL, "target": "trn1", "rows": [asdict(row) for row in rows]}
        print(write("nki_anchors", result, page(rows)))


if __name__ == "__main__":
    main()
