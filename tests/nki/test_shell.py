"""`python -m nki_kernels.simulator`: runs a kernel, prints what it costs, says what was wrong."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nki_kernels.simulator.__main__ import Unusable, main, value

KERNELS = """
import nki
import nki.isa as nisa
import nki.language as nl
from helpers import SCALE

LIMIT = 3


@nki.jit
def scaled(x, n=1, note=None):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    for _ in range(n):
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=SCALE)
    nisa.dma_copy(dst=out, src=tile)
    return out


def wide(x):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)


@nki.jit
def lenient(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm)
    nisa.dma_copy(dst=out, src=x)
    return out


@nki.jit
def where(x):
    tile = nl.ndarray((2, 8), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=float(nl.program_id(0) + nl.num_programs()))


@nki.jit
def endless(x):
    nl.while_loop(nisa.register_alloc(1), lambda r: r)


@nki.jit
def broken(x):
    raise KeyError("mine")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "helpers.py").write_text("SCALE = 2.0\n")
    path = tmp_path / "mine.py"
    path.write_text(KERNELS)
    yield str(path)
    for name in {"helpers", "kernels_of_mine"} & (set(sys.modules) - before):
        del sys.modules[name]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_kernel_runs_from_the_shell_with_a_report_a_picture_and_json(
    file: str, tmp_path: Path
) -> None:
    svg, report = tmp_path / "out.svg", tmp_path / "out.json"
    command = [sys.executable, "-m", "nki_kernels.simulator", f"{file}::scaled"]
    command += ["--args", "x=float32[128,512]", "n=3", "--target", "trn2", "--nki", "0.7"]
    command += ["--strict", "--report", "--svg", str(svg), "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("output 0: float32[128, 512], mean ")
    assert "modelled, not measured" in done.stdout
    assert "<- critical" in done.stdout
    assert "mine.py:" in ElementTree.fromstring(svg.read_text()).findtext(
        ".//{http://www.w3.org/2000/svg}title", ""
    )
    engines = json.loads(report.read_text())["cores"][0]["engines"]
    assert [(row["engine"], row["instructions"]) for row in engines] == [("vector", 3), ("dma", 2)]


def test_arrays_of_an_npz_file_are_passed_by_name(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", x=np.full((4, 2), 1.5, np.float32))
    code, out, _ = run(capsys, f"{file}::scaled", "--args", str(tmp_path / "in.npz"), "n=2")
    assert (code, out) == (0, "output 0: float32[4, 2], mean 6, from 6 to 6\n")


def test_random_data_depends_on_the_seed_alone(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = (
        run(capsys, f"{file}::scaled", "--args", "x=bfloat16[8,4]", "--seed", seed)[1]
        for seed in ("1", "1", "2")
    )
    assert first == again != other
    assert first.startswith("output 0: bfloat16[8, 4]")


def test_two_cores_and_a_plain_function(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, f"{file}::where", "--args", "x=int8[2,2]", "--cores", "2", "--report"
    )
    assert code == 0
    assert "core 1" in out
    code, out, _ = run(capsys, f"{file}::wide", "--args", "x=int32[64,8]", "--report")
    assert code == 0
    assert out.startswith("trn3, NKI 0.7")


def test_a_refused_kernel_ends_with_1(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, f"{file}::scaled", "--args", "x=float32[200,4]")
    assert code == 1
    assert err.startswith("refused: ")
    assert "mine.py:13" in err


def test_the_shell_bounds_a_loop_that_never_ends(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"{file}::endless", "--args", "x=float32[8,4]", "--loop-limit", "7"]
    code, _, printed = run(capsys, *arguments)
    assert code == 1
    assert "within 7 iterations" in printed
    assert "--loop-limit" in printed


def test_what_only_strict_refuses_is_a_warning(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, f"{file}::lenient", "--args", "x=float32[8,4]")
    assert code == 0
    assert err.startswith("warning: ")
    assert "output-buffer" in err
    code, _, err = run(capsys, f"{file}::lenient", "--args", "x=float32[8,4]", "--strict")
    assert code == 1
    assert err.startswith("refused: ")


def test_an_error_of_the_kernel_is_its_own(file: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        main([f"{file}::broken", "--args", "x=float32[8,4]"])


WRONG = {
    "no name": (["{file}"], "FILE.py::KERNEL"),
    "no file": (["missing.py::scaled"], "an existing file, got 'missing.py'"),
    "no Python": (["{folder}/text.md::scaled"], "a Python file"),
    "no kernel": (["{file}::other"], "kernels: scaled, lenient, where, endless, broken"),
    "no function": (["{file}::LIMIT"], "a function of"),
    "missing argument": (["{file}::scaled"], "missing a required argument: 'x'"),
    "unknown argument": (
        *(["{file}::scaled", "--args", "x=int8[2,2]", "y=3"], "scaled(x, n=1, note=None)"),
    ),
    "no name of an argument": (["{file}::scaled", "--args", "float32[2,2]"], "NAME=VALUE"),
    "unknown dtype": (["{file}::scaled", "--args", "x=float33[2,2]"], "a dtype of bfloat16,"),
    "no shape": (["{file}::scaled", "--args", "x=float32[]"], "sizes of 1 or more"),
    "empty shape": (["{file}::scaled", "--args", "x=float32[0,2]"], "sizes of 1 or more"),
    "no literal": (["{file}::scaled", "--args", "x=float32"], "dtype[shape], such as"),
    "twice": (["{file}::scaled", "--args", "n=1", "n=2"], "each name once, got 'n' twice"),
    "no npz": (["{file}::scaled", "--args", "{folder}/none.npz"], "a readable .npz"),
    "bad npz": (["{file}::scaled", "--args", "{folder}/bad.npz"], "a readable .npz"),
    "no folder": (
        ["{file}::scaled", "--args", "x=int8[2,2]", "--svg", "{folder}/none/out.svg"],
        "an existing folder",
    ),
    "unknown target": (["{file}::scaled", "--target", "trn9"], "invalid choice: 'trn9'"),
    "no iterations": (["{file}::scaled", "--loop-limit", "0"], "an int above 0, got '0'"),
    "unknown version": (["{file}::scaled", "--nki", "0.2"], "invalid choice: '0.2'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_ends_with_2_and_says_what_was_expected(
    case: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.md").write_text("# text\n")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    arguments, message = WRONG[case]
    code, out, err = run(capsys, *(a.format(file=file, folder=tmp_path) for a in arguments))
    assert (code, out) == (2, "")
    assert message in err


def test_a_target_of_the_environment_is_checked(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn9")
    code, _, err = run(capsys, f"{file}::scaled", "--args", "x=int8[2,2]")
    assert code == 2
    assert "NEURON_PLATFORM_TARGET_OVERRIDE: target: expected one of" in err


def test_values() -> None:
    random = np.random.default_rng(0)
    for text in ("4", "1e-6", "None", "True", "'a'", "(1, 2)"):
        assert repr(value(text, random)) in (text, "1e-06")
    drawn = value("int32[3, 5]", random)
    assert (drawn.dtype, drawn.shape) == (np.int32, (3, 5))
    assert 0 <= drawn.min() <= drawn.max() <= 9
    with pytest.raises(Unusable):
        value("__import__('os')", random)
