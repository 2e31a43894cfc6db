"""What every benchmark shares: the gate, the environment, spread, tables, result files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import transformers

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


class Spread(NamedTuple):
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        values = list(values)
        return cls(median(values), min(values), max(values))

    def show(self, digits: int = 2) -> str:
        """As "median (low-high)"."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def require_green(*paths: str) -> None:
    """Run the tests of what is about to be measured.

    Raises:
        SystemExit: they fail, so there is nothing to measure.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:] + done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"no measurement: {' '.join(paths)} failed (above)")


def environment() -> dict[str, str]:
    """Where and with what a result was measured."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{_cpu_name()}, {os.cpu_count()} cores ({capability})",
        "threads": f"{torch.get_num_threads()} (OMP_WAIT_POLICY {policy})",
        "load average": f"{os.getloadavg()[1]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column left, the others right aligned."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows)) + "\n"


def footer(setting: dict[str, str]) -> str:
    """The environment as one line of Markdown."""
    return "Measured on " + "; ".join(f"{key} {value}" for key, value in setting.items()) + ".\n"


def write(name: str, result: dict[str, Any], markdown: str) -> Path:
    """Write docs/results/`name`.json and .md; returns the page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    page = RESULTS / f"{name}.md"
    page.write_text(markdown)
    return page


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
