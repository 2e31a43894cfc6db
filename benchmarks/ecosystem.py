"""Try the model with what other people use around it, and write docs/results/ecosystem.md.

    make check-ecosystem

A test of tests/ecosystem is a row: its docstring says "PACKAGE: CASE", a name that ends in
"_is_refused" that the refusal is by design, the property "note" what was measured.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

import pytest

from benchmarks.report import environment, footer, table, write

PATHS = ("tests/ecosystem", "tests/model/test_offload.py")
PACKAGES = ("accelerate", "bitsandbytes", "lm_eval", "peft", "torch", "torchao", "trl")


@dataclass
class Case:
    """One test function: what it tries, how its runs ended and what they noted."""

    package: str
    title: str
    by_design: bool
    outcomes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def result(self) -> str:
        """As a reader of the table takes it."""
        words = {"passed": "refused by design" if self.by_design else "works"}
        counts = Counter(words.get(outcome, outcome) for outcome in self.outcomes)
        ended = ", ".join(f"{word} ({n})" if n > 1 else word for word, n in counts.items())
        return "; ".join([ended, *dict.fromkeys(self.notes)])


class Cases:
    """A pytest plugin that gathers the cases."""

    def __init__(self) -> None:
        self.found: dict[str, Case] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Each function is one case, however many parameters it takes."""
        name = item.nodeid.split("[")[0]
        text = getattr(item, "obj").__doc__ or name  # noqa: B009 (a function's, not every item's)
        package, _, title = text.strip().partition(": ")
        self.found.setdefault(name, Case(package, title, name.endswith("_is_refused")))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a run ended."""
        if report.when != "call" and report.passed:
            return
        case = self.found[report.nodeid.split("[")[0]]
        outcome: str = report.outcome
        if report.skipped:
            why = getattr(report, "wasxfail", None) or report.longrepr[2]  # type: ignore[index]
            outcome = f"not here: {why}"
        case.outcomes.append(outcome)
        case.notes += [str(value) for key, value in report.user_properties if key == "note"]


def main() -> None:
    """Run all cases; the page is written if none fails.

    Raises:
        SystemExit: a case failed.
    """
    cases = Cases()
    if code := pytest.main([*PATHS, "-q", "-W", "default"], plugins=[cases]):
        sys.exit(int(code))
    versions = {name: version(name) for name in PACKAGES}
    found = sorted(cases.found.values(), key=lambda case: case.package)
    rows = [(f"{c.package} {versions[c.package]}", c.title, c.result()) for c in found]
    setting = environment()
    page = f"""# With other people's tools

Small random models of every layer type, and the embedded one for the quantizers, on a CPU. In
brackets: how many models or settings were tried. `make check-ecosystem` writes this page from the
tests of `tests/ecosystem`, which compare values: logits, tokens, losses worked out by hand.

{table(["package", "case", "result"], rows)}
{footer(setting)}"""
    result = {"setting": setting, "versions": versions, "cases": [asdict(case) for case in found]}
    print(page)
    write("ecosystem", result, page)


if __name__ == "__main__":
    main()
