"""The schedule as SVG text: a lane per engine and core, a bar per instruction, a time axis."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from nki_kernels.simulator.cost.schedule import Step
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.report import MICRO, Report

WIDTH, LEFT, RIGHT, TOP = 1200, 110, 20, 46
LANE, GAP, NARROWEST = 30, 6, 0.6
COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#ff9da6"),
    *("#9d755d", "#2f4b7c", "#a05195", "#7a9a01", "#d45087", "#00798c", "#665191", "#8c6d31"),
)
MERGED = "#9a9a9a"


@dataclass
class _Bar:
    """Instructions drawn as one: alone, or neighbours too narrow to be told apart."""

    start: float
    end: float
    steps: list[Step]


def svg(report: Report) -> str:
    """A picture of the report's schedule. Hovering over a bar tells its source line."""
    steps = report.schedule.steps
    total = report.schedule.length or 1.0
    scale = (WIDTH - LEFT - RIGHT) / total
    ops = list(dict.fromkeys(step.event.op for step in steps))
    colour = {op: COLOURS[index % len(COLOURS)] for index, op in enumerate(ops)}
    lanes = [
        (core.core, engine) for core in report.cores for engine in Engine
        if any(row.engine == engine.name for row in core.engines)
    ]  # fmt: skip
    grouped: dict[tuple[int, Engine], list[Step]] = {lane: [] for lane in lanes}
    for step in steps:
        grouped[step.event.core, step.event.engine].append(step)
    bottom = TOP + len(lanes) * (LANE + GAP)
    parts = [_text(LEFT, 18, f"{report.target}, NKI {report.nki}: {report.label}", bold=True)]
    times = f"schedule {report.schedule_us:,.2f} us, lower bound {report.lower_bound_us:,.2f} us"
    parts.append(_text(LEFT, 36, times))
    for place, lane in enumerate(lanes):
        parts += _lane(lane, grouped[lane], TOP + place * (LANE + GAP), scale, colour, report)
    parts += _axis(total, scale, bottom)
    legend, height = _legend(colour, bottom + 44)
    body = "\n".join(parts + legend)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _lane(
    lane: tuple[int, Engine],
    steps: list[Step],
    top: int,
    scale: float,
    colour: dict[str, str],
    report: Report,
) -> list[str]:
    core, engine = lane
    name = f"core {core} {engine.name}" if len(report.cores) > 1 else engine.name
    parts = [_text(LEFT - 8, top + LANE // 2 + 4, name, anchor="end")]
    width = WIDTH - LEFT - RIGHT
    parts.append(f'<rect x="{LEFT}" y="{top}" width="{width}" height="{LANE}" fill="#f2f2f2"/>')
    for bar in _bars(steps, scale):
        first = bar.steps[0]
        same = {step.event.op for step in bar.steps}
        fill = colour[first.event.op] if len(same) == 1 else MERGED
        wide = max((bar.end - bar.start) * scale, NARROWEST)
        parts.append(
            f'<rect x="{LEFT + bar.start * scale:.2f}" y="{top}" width="{wide:.2f}"'
            f' height="{LANE}" fill="{fill}"><title>{escape(_title(bar))}</title></rect>'
        )
    return parts


def _bars(steps: list[Step], scale: float) -> list[_Bar]:
    """The steps in order of time; those that would be narrower than a line, merged."""
    bars: list[_Bar] = []
    for step in sorted(steps, key=lambda step: step.start):
        last = bars[-1] if bars else None
        near = last is not None and (step.start - last.end) * scale < NARROWEST
        if last is not None and near and (step.end - last.start) * scale < 2 * NARROWEST:
            last.end = max(last.end, step.end)
            last.steps.append(step)
        else:
            bars.append(_Bar(step.start, step.end, [step]))
    return bars


def _title(bar: _Bar) -> str:
    event = bar.steps[0].event
    file, line = Path(event.line[0]).name, event.line[1]
    when = f"{bar.start * MICRO:.2f}-{bar.end * MICRO:.2f} us, modelled"
    if len(bar.steps) > 1:
        return f"{len(bar.steps)} instructions from {event.op} ({file}:{line}) on, {when}"
    named = f" {event.name}" if event.name else ""
    shapes = ", ".join(f"{a.argument}{list(a.shape)} {a.dtype}" for a in event.writes + event.reads)
    return f"{event.op}{named} at {file}:{line}\n{shapes}\n{when}"


def _axis(total: float, scale: float, top: int) -> list[str]:
    step = _round_step(total * MICRO / 8)
    parts = [f'<line x1="{LEFT}" y1="{top}" x2="{WIDTH - RIGHT}" y2="{top}" stroke="#444"/>']
    count = int(total * MICRO / step)
    for index in range(count + 1):
        x = LEFT + index * step / MICRO * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{top + 4}" stroke="#ccc"/>')
        parts.append(_text(x, top + 18, f"{index * step:g}", anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, _text(middle, top + 34, "modelled microseconds", anchor="middle")]


def _round_step(least: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** (len(f"{int(least)}") - 1) if least >= 1 else 1e-3
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


def _legend(colour: dict[str, str], top: int) -> tuple[list[str], int]:
    parts, x, y = [], LEFT, top
    for op, fill in [*colour.items(), ("several, too narrow", MERGED)]:
        width = 24 + 7 * len(op)
        if x + width > WIDTH - RIGHT:
            x, y = LEFT, y + 18
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{fill}"/>')
        parts.append(_text(x + 16, y + 10, op))
        x += width
    return parts, y + 24


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
