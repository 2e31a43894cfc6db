"""The three steps of the Mamba tutorial compute the scan, and cost what their structure says."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.nki_anchors import ANCHORS, line
from benchmarks.report import RESULTS
from nki_kernels.simulator import Session, session
from tests.nki.kernels.mamba import mamba_v1, mamba_v2, mamba_v3
from tests.nki.test_kernels import scan_reference

KERNELS = {"v1": mamba_v1, "v2": mamba_v2, "v3": mamba_v3}


def inputs(D: int, S: int, L: int) -> list[Any]:
    rng = np.random.default_rng(0)
    arrays = [
        *(rng.uniform(0.01, 0.2, (D, L)), rng.standard_normal((D, L))),
        *(-rng.uniform(0.5, 4, (D, S)), rng.standard_normal((S, L)), rng.standard_normal((S, L))),
    ]
    return [array.astype(np.float32) for array in arrays]


@pytest.mark.parametrize("length", [63, 600, 1100])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_compute_the_scan(strict: Session, name: str, length: int) -> None:
    arrays = inputs(256, 3, length)
    np.testing.assert_allclose(KERNELS[name](*arrays), scan_reference(*arrays), atol=5e-5)


@pytest.mark.parametrize(("name", "per_element"), [("v1", 8), ("v2", 6 + 2 / 4), ("v3", 6 + 2 / 4)])
def test_vector_cycles_per_element_and_state(name: str, per_element: float) -> None:
    D, S, L = 256, 4, 512
    with session(target="trn1") as run:
        KERNELS[name](*inputs(D, S, L))
    (core,) = run.report().cores
    vector = next(row for row in core.engines if row.engine == "vector")
    carries = 64 * D // 128 * S if name == "v3" else 0
    assert vector.cycles - carries == pytest.approx(per_element * D // 128 * S * L)


def test_only_v1_loads_delta_and_u_for_every_state() -> None:
    moved = {}
    for name, kernel in KERNELS.items():
        with session(target="trn1") as run:
            kernel(*inputs(256, 4, 512))
        moved[name] = next(r.bytes for r in run.report().cores[0].engines if r.engine == "dma")
    assert moved["v2"] == moved["v3"]
    assert moved["v1"] - moved["v2"] == 3 * 2 * 256 * 512 * 4  # three more loads of both


def test_the_page_of_results_is_of_this_model() -> None:
    stored = json.loads((RESULTS / "nki_anchors.json").read_text())
    assert stored["label"] == "modelled, not measured"
    rows = {(row["kernel"], row["channels"], row["tokens"]): row for row in stored["rows"]}
    assert set(rows) == {(a.kernel, a.channels, a.tokens) for a in ANCHORS}
    smallest = line(ANCHORS[0])
    assert rows["mamba_v1", 256, 512]["modelled_us"] == pytest.approx(smallest.modelled_us)
    for row in rows.values():
        assert row["modelled_us"] >= row["lower_bound_us"]
        assert row["refused"] == (row["kernel"] == "mamba_v2" and row["tokens"] == 8192)
        assert row["refused"] or 0.6 <= row["ratio"] <= 1.6
