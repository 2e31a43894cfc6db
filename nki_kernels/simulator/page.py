"""The generated tables of the documentation's page: instructions, rules and costs.

    python -m nki_kernels.simulator.page docs/nki-simulator.md

rewrites what stands between `<!-- generated: NAME -->` and `<!-- end -->`; the rest is kept.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from nki_kernels.simulator import isa
from nki_kernels.simulator.cost.constants import TABLE, Status
from nki_kernels.simulator.cost.cycles import FORMULAS, UNKNOWN
from nki_kernels.simulator.hardware import GENERATIONS, Engine
from nki_kernels.simulator.instruction import INSTRUCTIONS, Instruction
from nki_kernels.simulator.rules import RULES


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
    )


def _engines(of: Instruction, generation: int) -> str:
    """The engines that run it on a generation, the default first; empty if none."""
    if generation not in of.generations:
        return ""
    return ", ".join(engine.name for engine, first in of.engines.items() if first <= generation)


def instructions() -> str:
    """Every instruction: the engines on each generation, the first version, what it does."""
    rows = [
        (
            f"`{name}`",
            *(_engines(of, number) or "-" for number in GENERATIONS),
            of.since,
            " ".join((of.body.__doc__ or "").split("\n\n")[0].split()),
        )
        for name, of in sorted(INSTRUCTIONS.items())
    ]
    targets = (f"{one.name} (gen{one.number})" for one in GENERATIONS.values())
    return _table(("`nisa.`", *targets, "from NKI", "what"), rows)


def not_simulated() -> str:
    """Instructions that are known by name only."""
    reasons = isa.not_simulated.REASONS
    if not reasons:
        return "Every documented instruction is simulated."
    return _table(("`nisa.`", "why"), [(f"`{name}`", why) for name, why in sorted(reasons.items())])


def rules() -> str:
    """The table of `rules.RULES`."""
    rows = [(f"`{one.name}`", one.mode.value, one.says, one.source) for one in RULES.values()]
    return _table(("rule", "error", "what holds", "source"), rows)


def clocks() -> str:
    """GHz of each engine and GB/s of DMA on each generation."""
    engines = list(next(iter(GENERATIONS.values())).clock)
    rows = [
        (
            f"{one.name} (gen{one.number})",
            *(f"{one.clock[engine] / 1e9:g}" for engine in engines),
            f"{one.dma_rate / 1e9:g}",
        )
        for one in GENERATIONS.values()
    ]
    return _table(("GHz", *(engine.name for engine in engines), "DMA, GB/s"), rows)


def formulas() -> str:
    """What each instruction occupies its engine for, and how far that can be trusted."""
    rows = []
    for name, of in sorted(INSTRUCTIONS.items()):
        if Engine.dma in of.engines:
            text, status = "a DMA, see below", Status.INFERRED
        else:
            cost = FORMULAS.get(name)
            text = cost.text if cost else f"{UNKNOWN.text}, for want of a formula"
            status = (cost or UNKNOWN).status
        rows.append((f"`{name}`", text, status.value))
    return _table(("`nisa.`", "cycles", "status"), rows)


def constants() -> str:
    """The table of `cost.constants`."""
    rows = [
        (
            *(f"`{one.name}`", f"{one.value:.6g}", one.unit),
            ", ".join(f"gen{number}" for number in one.generations),
            *(one.status.value, one.source),
        )
        for one in TABLE
    ]
    return _table(("constant", "value", "unit", "on", "status", "source"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "instructions": instructions,
    "not simulated": not_simulated,
    "rules": rules,
    "clocks": clocks,
    "formulas": formulas,
    "constants": constants,
}


def renewed(page: str) -> str:
    """The page with its generated parts as they are now. KeyError for an unknown one."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- generated: (.+?) -->\n.*?<!-- end -->", part, page, flags=re.DOTALL)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(renewed(file.read_text()))
