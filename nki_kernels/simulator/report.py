"""`run.report()`: what a session's kernels would cost on its target. Modelled, not measured."""

import html
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields

from nki_kernels.simulator.context import Session
from nki_kernels.simulator.cost import LABEL
from nki_kernels.simulator.cost.cycles import FORMULAS
from nki_kernels.simulator.cost.schedule import Schedule, Step, schedule
from nki_kernels.simulator.hardware import PSUM_BANK_BYTES, PSUM_BANKS, Engine
from nki_kernels.simulator.memory import Buffer

MICRO = 1e6


@dataclass(frozen=True)
class EngineReport:
    """One engine of one core. DMA counts as an engine without cycles; all its queues are one.

    `share` is busy time over the core's schedule. `bytes`: what a DMA moves; what others write.
    """

    engine: str
    instructions: int
    cycles: float
    busy_us: float
    share: float
    bytes: int


@dataclass(frozen=True)
class CoreReport:
    """One physical core. Peaks in bytes per partition; times in modelled microseconds."""

    core: int
    engines: tuple[EngineReport, ...]
    critical: str  # the engine that is busy longest
    bound_by: str  # it, or a port that two engines share
    sbuf_peak: int
    psum_peak: int
    dma_efficiency: float | None  # share of the full rate, weighted by time; None without a DMA
    dma_descriptors: int
    lower_bound_us: float
    schedule_us: float

    @property
    def instructions(self) -> int:
        """Instructions of all engines."""
        return sum(engine.instructions for engine in self.engines)


@dataclass(frozen=True)
class Report:
    """The cost of a session. `str(report)` is a table; `to_json()` and `to_svg()` say the same."""

    target: str
    nki: str
    launches: int
    cores: tuple[CoreReport, ...]
    lower_bound_us: float  # busiest engine of any core
    critical_path_us: float  # longest chain of dependencies
    schedule_us: float  # dependency-aware estimate
    sbuf_limit: int
    psum_limit: int
    without_formula: tuple[str, ...]  # instructions costed as N for want of a formula
    label: str = LABEL
    schedule: Schedule = field(
        repr=False, compare=False, default_factory=lambda: Schedule([], {}, 0.0)
    )

    @property
    def busiest(self) -> CoreReport | None:
        """The core with the highest lower bound; None if nothing ran."""
        return max(self.cores, key=lambda core: core.lower_bound_us, default=None)

    def to_json(self) -> str:
        """Everything but the single steps."""
        names = [field.name for field in fields(self) if field.name not in ("schedule", "cores")]
        cores = [asdict(core) for core in self.cores]
        return json.dumps(
            {name: getattr(self, name) for name in names} | {"cores": cores}, indent=2
        )

    def to_svg(self) -> str:
        """The schedule as a picture: engines as lanes, instructions as bars."""
        from nki_kernels.simulator.picture import svg

        return svg(self)

    def __str__(self) -> str:
        lines = [f"{self.target}, NKI {self.nki}: {self.label}"]
        for core in self.cores:
            lines += _core_lines(self, core, name=len(self.cores) > 1)
        bound = f" ({self.busiest.bound_by})" if self.busiest else ""
        lines.append(
            f"lower bound {self.lower_bound_us:,.2f} us{bound},"
            f" critical path {self.critical_path_us:,.2f} us,"
            f" schedule {self.schedule_us:,.2f} us; {self.label}"
        )
        if self.without_formula:
            names = ", ".join(self.without_formula)
            lines.append(f"costed as one cycle per element, for want of a formula: {names}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>{self.to_svg()}"


def _core_lines(report: Report, core: CoreReport, *, name: bool) -> list[str]:
    lines = [f"core {core.core}"] if name else []
    head = (
        f"{'engine':<8}{'instructions':>13}{'cycles':>14}{'busy us':>12}{'share':>8}{'bytes':>15}"
    )
    lines.append(head)
    for row in core.engines:
        mark = " <- critical" if row.engine == core.critical else ""
        cycles = f"{row.cycles:,.0f}" if row.cycles else "-"
        lines.append(
            f"{row.engine:<8}{row.instructions:>13,}{cycles:>14}{row.busy_us:>12,.2f}"
            f"{row.share:>8.1%}{row.bytes:>15,}{mark}"
        )
    lines.append(
        f"peaks per partition: SBUF {core.sbuf_peak:,} of {report.sbuf_limit:,} bytes,"
        f" PSUM {core.psum_peak:,} of {report.psum_limit:,}"
    )
    if core.dma_efficiency is not None:
        lines.append(
            f"DMA: {core.dma_descriptors:,} descriptors, {core.dma_efficiency:.0%} of the full rate"
        )
    return lines


def report(session: Session) -> Report:
    """Cost everything that ran in the session so far."""
    ledger, generation = session.ledger, session.generation
    firsts = [first for first, _ in ledger.launches]
    found = schedule(ledger.events, generation, firsts)
    cores = sorted({event.core for event in ledger.events})
    names = {event.op for event in ledger.events if event.engine is not Engine.dma}
    return Report(
        target=generation.name,
        nki=session.nki,
        launches=len(firsts),
        cores=tuple(_core(session, found, core) for core in cores),
        lower_bound_us=found.lower_bound * MICRO,
        critical_path_us=found.critical_path * MICRO,
        schedule_us=found.length * MICRO,
        sbuf_limit=generation.sbuf_usable,
        psum_limit=PSUM_BANKS * PSUM_BANK_BYTES,
        without_formula=tuple(sorted(names - FORMULAS.keys())),
        schedule=found,
    )


def _core(session: Session, found: Schedule, core: int) -> CoreReport:
    steps = [step for step in found.steps if step.event.core == core]
    length = max(step.done for step in steps)
    busy = {name: seconds for (at, name), seconds in found.busy.items() if at == core}
    moves = [step.transfer for step in steps if step.transfer is not None]
    engines = Counter(step.event.engine for step in steps)
    full = sum(move.bytes for move in moves) / session.generation.dma_rate
    return CoreReport(
        core=core,
        engines=tuple(
            _engine(engine, [step for step in steps if step.event.engine is engine], length)
            for engine in Engine
            if engine in engines
        ),
        critical=max((engine.name for engine in engines), key=lambda name: busy[name]),
        bound_by=max(busy, key=lambda name: busy[name]),
        sbuf_peak=session.ledger.peak(Buffer.sbuf, core)[0],
        psum_peak=session.ledger.peak(Buffer.psum, core)[0],
        dma_efficiency=full / sum(move.busy for move in moves) if moves else None,
        dma_descriptors=sum(move.descriptors for move in moves),
        lower_bound_us=max(busy.values()) * MICRO,
        schedule_us=length * MICRO,
    )


def _engine(engine: Engine, steps: list[Step], length: float) -> EngineReport:
    busy = sum(step.end - step.start for step in steps)
    return EngineReport(
        engine=engine.name,
        instructions=len(steps),
        cycles=sum(step.cycles for step in steps),
        busy_us=busy * MICRO,
        share=busy / length if length else 0.0,
        bytes=sum(_bytes(step) for step in steps),
    )


def _bytes(step: Step) -> int:
    return step.transfer.bytes if step.transfer is not None else step.event.bytes
