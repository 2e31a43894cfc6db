"""`install()`: the names that kernels import, placeholders, and real installations."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nki_kernels import simulator

ROOT = Path(__file__).parents[2]


VENDOR = {  # the documented interface: jit, simulate, kernel[2] and the environment
    "nki/__init__.py": """
import os
from nki_kernels.simulator import jit as _jit, session as _session

calls = []

class Jitted:
    def __init__(self, function, grid=None):
        self.function, self.grid = function, grid
        self.__name__ = function.__name__

    def __getitem__(self, grid):
        return Jitted(self.function, grid)

    def __call__(self, *args, **kwargs):
        if os.environ.get("NKI_SIMULATOR") != "1":
            raise RuntimeError("no device")
        return simulate(self)(*args, **kwargs)

def jit(function):
    return Jitted(function)

def simulate(kernel):
    kernel = kernel if isinstance(kernel, Jitted) else jit(kernel)

    def run(*args, **kwargs):
        calls.append((kernel.__name__, kernel.grid, os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"]))
        with _session(backend="simulator"):
            made = _jit(kernel.function)
            return (made if kernel.grid is None else made[kernel.grid])(*args, **kwargs)
    return run
""",
    "nki/isa.py": """
from nki_kernels.simulator import isa as _isa
def __getattr__(name):
    return getattr(_isa, name)
""",
    "nki/language.py": """
from nki_kernels.simulator import language as _language
def __getattr__(name):
    return getattr(_language, name)
""",
}


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for the vendor's package, and the folder where it lies."""
    simulator.uninstall()
    for name, source in VENDOR.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("NKI_SIMULATOR", raising=False)
    yield tmp_path
    simulator.uninstall()
    assert "NKI_SIMULATOR" not in os.environ


def package(site: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """An `nki` on the path, found before anything else."""
    (site / "nki" / "language").mkdir(parents=True)
    (site / "nki" / "__init__.py").write_text(source)
    (site / "nki" / "language" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(site))


def test_the_modules_that_kernels_import() -> None:
    simulator.install()
    import nki
    import nki.dtype
    import nki.isa as nisa
    import nki.language as nl
    from nki.isa import constants
    from nki.isa.constants import oob_mode, reduce_cmd
    from nki.typing import mutable_tensor, tensor

    assert (oob_mode, reduce_cmd) == (nisa.oob_mode, nisa.reduce_cmd)
    assert constants.oob_mode is oob_mode
    assert nki.dtype.float32 == nl.float32
    assert tensor is nl.NkiTensor
    assert mutable_tensor.__name__ == "mutable_tensor"
    assert nki.simulate(nki.jit(lambda x: x))(np.ones((2, 2), np.float32)).shape == (2, 2)


def test_a_placeholder_is_no_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator.uninstall()
    package(tmp_path, monkeypatch, "raise RuntimeError('get it elsewhere')")
    nki = simulator.install()
    assert nki.__simulated__


def test_a_real_installation_is_shadowed_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.uninstall()
    package(tmp_path, monkeypatch, "real = True")
    with pytest.raises(simulator.NkiInstallError, match=str(tmp_path)):
        simulator.install()
    assert simulator.install(shadow=True).__simulated__
    simulator.uninstall()
    import nki

    assert nki.real
    simulator.uninstall()


def test_neither_torch_nor_the_model_is_needed() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'bmojo_neuron', 'rich')));"
        "from nki_kernels import simulator; simulator.install();"
        "import nki, nki.language as nl, nki.isa as nisa; print(nl.float32, nisa.dma_copy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "float32" in done.stdout


def test_the_target_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from nki_kernels.simulator import language as nl

    def kernel() -> int:
        return int(nl.get_nc_version().value)

    assert simulator.jit(kernel)() == 4
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    assert simulator.jit(kernel)() == 2
    with simulator.session(target="gen3"):
        assert simulator.jit(kernel)() == 3
    with pytest.raises(ValueError, match="target: expected one of"), simulator.session("trn9"):
        pass


def test_the_vendors_simulator_is_a_backend(vendor: Path) -> None:
    nki = simulator.install(backend="vendor")
    assert Path(nki.__file__).is_relative_to(vendor)
    import nki.isa as nisa
    import nki.language as nl

    def double(x: Any) -> Any:
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        half = x.shape[0] // nl.num_programs()
        mine = nl.ds(nl.program_id(0) * half, half)
        tile = nl.load(x[mine])
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
        nl.store(out[mine], tile)
        return out

    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    with simulator.session(target="trn2") as run:
        np.testing.assert_array_equal(simulator.jit(double)(x), 2 * x)
        np.testing.assert_array_equal(simulator.simulate(nki.jit(double))(x), 2 * x)
        np.testing.assert_array_equal(simulator.jit(double)[2](x), 2 * x)
        np.testing.assert_array_equal(nki.jit(double)(x), 2 * x)
    assert nki.calls[:3] == [("double", grid, "trn2") for grid in (None, None, 2)]
    assert nki.calls[3] == ("double", None, "trn2")
    assert not run.ledger.events


def test_the_source_is_read_for_the_vendors_backend_too(vendor: Path) -> None:
    simulator.install(backend="vendor")

    def kernel(x: Any) -> None:
        assert x is not None

    with (
        simulator.session(target="trn2", nki="0.6", strict=True),
        pytest.raises(simulator.NkiValidationError, match="python-is"),
    ):
        simulator.jit(kernel)(np.ones((2, 2), np.float32))


def test_the_vendors_backend_needs_the_vendors_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "raise RuntimeError('get it elsewhere')")
    with pytest.raises(simulator.NkiInstallError, match="placeholder"):
        simulator.install(backend="vendor")
    simulator.install()
    with (
        simulator.session(backend="vendor"),
        pytest.raises(simulator.NkiInstallError, match=r"install\(backend='vendor'\)"),
    ):
        simulator.jit(lambda x: x)(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="backend: expected one of simulator, vendor"):
        simulator.install(backend="device")


def test_the_kernels_tests_run_through_the_vendors_backend(vendor: Path) -> None:
    """The tests of whole kernels, unchanged, with the backend of the environment."""
    code = (
        "import sys, pytest; import nki_kernels.simulator as s; s.install(); import nki;"
        "assert 'calls' in vars(nki);"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *sys.argv[1:]]))"
    )
    chosen = ["tests/nki/test_kernels.py", "-k", "tiled_matmul or rmsnorm or a_selective_scan"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(vendor), str(ROOT)]),
        "NKI_SIMULATOR_BACKEND": "vendor",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *chosen],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
