"""`install()`: the names that kernels import, placeholders, and real installations."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nki_kernels import simulator

ROOT = Path(__file__).parents[2]


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
    from nki.isa.constants import oob_mode, reduce_cmd
    from nki.typing import mutable_tensor, tensor

    assert (oob_mode, reduce_cmd) == (nisa.oob_mode, nisa.reduce_cmd)
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
