"""The report and its picture say what the ledger holds, and that it is modelled."""

import json
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import Session, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.cost import LABEL
from nki_kernels.simulator.cost.cycles import cycles
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.report import Report
from tests.nki.kernels.matmul import matmul_tiled
from tests.nki.test_schedule import ONES, barrier

SVG = "{http://www.w3.org/2000/svg}"


def matmul(target: str = "trn2") -> tuple[Session, Report]:
    with session(target=target) as run:
        matmul_tiled(np.ones((256, 128), np.float32), np.ones((256, 1024), np.float32))
    return run, run.report()


def test_sums_equal_the_ledger() -> None:
    run, report = matmul()
    (core,) = report.cores
    assert core.instructions == len(run.ledger.events) == 16
    for row in core.engines:
        mine = [event for event in run.ledger.events if event.engine.name == row.engine]
        assert row.instructions == len(mine)
        assert row.bytes == sum(event.bytes for event in mine)
        if row.engine != "dma":
            total = sum(cycles(event, run.generation) for event in mine)
            assert row.cycles == pytest.approx(total)
            clock = run.generation.clock[Engine[row.engine]]
            assert row.busy_us == pytest.approx(total / clock * 1e6)
            assert row.share == pytest.approx(row.busy_us / core.schedule_us)


def test_the_figures_of_a_known_kernel() -> None:
    _, report = matmul()
    (core,) = report.cores
    rows = {row.engine: row for row in core.engines}
    assert rows["tensor"].cycles == 4 * 2048  # float32: four passes of 512 columns
    assert rows["vector"].cycles == 2 * 512
    assert rows["dma"].bytes == 4 * (4 * 128 * 128 + 4 * 128 * 512 + 2 * 128 * 512)
    assert core.critical == core.bound_by == "dma"
    assert core.psum_peak == 2048
    assert core.sbuf_peak == 128 * 4 + 512 * 4
    assert report.lower_bound_us == pytest.approx(rows["dma"].busy_us)
    assert report.lower_bound_us <= report.schedule_us
    # rows of 512 bytes for the left operand, of 2 KiB for everything else
    assert core.dma_descriptors == 128 * 10
    full = rows["dma"].bytes / 368e9 * 1e6
    assert core.dma_efficiency == pytest.approx(full / rows["dma"].busy_us)


def test_the_table_names_the_critical_engine_and_that_it_is_modelled() -> None:
    _, report = matmul()
    text = str(report)
    assert "trn2, NKI 0.7" in text
    assert re.search(r"dma +10 .* <- critical", text)
    for line in text.splitlines():
        assert " us" not in line or "busy us" in line or LABEL in line
    assert LABEL == "modelled, not measured"


def test_the_shared_port_of_gen2_is_named() -> None:
    with session(target="trn1") as run:

        def kernel() -> None:
            nisa.memset(nl.ndarray((128, 512), nl.float32), 1.0, engine=nisa.engine.vector)
            nisa.iota(nl.ndarray((128, 512), nl.float32), [[1, 512]])

        jit(kernel)()
    (core,) = run.report().cores
    assert core.critical == "gpsimd"
    assert core.bound_by == "SBUF port of vector and gpsimd"


def test_json_says_the_same() -> None:
    _, report = matmul()
    found = json.loads(report.to_json())
    assert found["label"] == LABEL
    assert found["schedule_us"] == report.schedule_us
    assert [row["engine"] for row in found["cores"][0]["engines"]] == ["tensor", "vector", "dma"]
    assert found["cores"][0]["engines"][0]["cycles"] == 8192


def test_two_cores_are_reported_one_by_one() -> None:
    with session(target="trn2") as run:
        jit(barrier)[2](ONES)
    report = run.report()
    first, second = report.cores
    assert (first.core, second.core) == (0, 1)
    assert [row.instructions for row in first.engines] == [1, 3, 1]
    assert [row.instructions for row in second.engines] == [6, 3, 1]
    assert second.lower_bound_us == report.lower_bound_us > first.lower_bound_us
    assert "core 0\n" in str(report)
    assert "core 1\n" in str(report)
    assert "core 1 vector" in report.to_svg()


def test_an_empty_session_has_an_empty_report() -> None:
    with session(target="trn2") as run:
        report = run.report()
    assert (report.cores, report.schedule_us, report.launches) == ((), 0.0, 0)
    assert "schedule 0.00 us" in str(report)
    ElementTree.fromstring(report.to_svg())


def bars(svg: str) -> list[tuple[float, float, str]]:
    """x, width and title of the bars."""
    found = []
    for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None:
            found.append((float(rect.attrib["x"]), float(rect.attrib["width"]), title.text or ""))
    return found


def test_the_picture_has_a_bar_per_instruction_with_its_line() -> None:
    run, report = matmul()
    svg = report.to_svg()
    found = bars(svg)
    assert len(found) == len(run.ledger.events)
    line = next(e.line[1] for e in run.ledger.events if e.op == "nc_matmul")
    products = [title for _, _, title in found if title.startswith("nc_matmul")]
    assert len(products) == 4
    assert all(f"at matmul.py:{line}\n" in title and "modelled" in title for title in products)
    assert LABEL in svg
    assert all(x >= 110 and x + width <= 1181 for x, width, _ in found)


def test_many_instructions_are_drawn_as_few_bars_that_say_how_many() -> None:
    def kernel() -> None:
        tile = nl.ndarray((128, 8), nl.float32)
        for _ in range(5000):
            nisa.memset(tile, 1.0, engine=nisa.engine.vector)

    with session(target="trn2") as run:
        jit(kernel)()
    titles = [title for _, _, title in bars(run.report().to_svg())]
    assert len(titles) < 2500
    counts = [int(m[1]) if (m := re.match(r"(\d+) instr", title)) else 1 for title in titles]
    assert sum(counts) == 5000


def test_a_name_with_markup_is_escaped() -> None:
    def kernel() -> None:
        nisa.memset(nl.ndarray((128, 8), nl.float32), 1.0, name="<a & b>")

    with session(target="trn2") as run:
        jit(kernel)()
    report: Any = run.report()
    assert "memset <a & b> at" in bars(report.to_svg())[0][2]
    assert "&lt;- critical" in report._repr_html_()
