"""`bmojo doctor`: each kind of absence is told apart, and told with its way out."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from torch._inductor import config as inductor

from bmojo_neuron.doctor import (
    OUR_PACKAGES,
    Check,
    Report,
    check_compiler,
    check_import,
    check_model,
    check_neuron,
    check_owner,
    diagnose,
    render,
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path in which a test installs packages of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    body: str,
    *,
    distribution: str | None = None,
    description: str = "",
) -> None:
    (site / package).mkdir()
    (site / package / "__init__.py").write_text(body)
    info = site / f"{(distribution or package).replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution or package}\nVersion: 1.0\n\n{description}\n"
    )
    monkeypatch.delitem(sys.modules, package, raising=False)


def test_an_installed_package_shows_its_version(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, "sound_package", "")
    assert check_import("sound_package") == Check("sound_package", True, "1.0")


def test_an_absent_package_is_called_not_installed() -> None:
    check = check_import("no_such_package", "no-such-dist")
    assert check == Check("no_such_package", False, "no-such-dist is not installed")


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_a_placeholder_that_raises_is_called_a_placeholder(
    error: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"raise {error}('WRONG PACKAGE. Please install from elsewhere.')"
    install(site, monkeypatch, "placeholder", body)
    check = check_import("placeholder")
    assert not check.ok
    assert "placeholder 1.0 is a placeholder that refuses to import" in check.detail


def test_a_placeholder_without_the_module_is_known_by_its_description(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        site,
        monkeypatch,
        "neuron-compiler",  # not importable: a hyphen, as one of the real placeholders has
        "",
        distribution="fake-neuron-compiler",
        description="WRONG PACKAGE, see the documentation.",
    )
    check = check_import("fake_neuron_compiler", "fake-neuron-compiler")
    assert not check.ok
    assert "fake-neuron-compiler 1.0 is a placeholder" in check.detail


def test_a_broken_package_shows_its_first_line(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, monkeypatch, "broken", "raise OSError('libfoo.so: no such file\\nmore')")
    assert check_import("broken").detail == (
        "broken 1.0 fails to import (OSError: libfoo.so: no such file)"
    )


def test_a_missing_dependency_is_not_a_missing_package(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, "needy", "import no_such_dependency")
    assert "needy 1.0 fails to import" in check_import("needy").detail
    assert "no_such_dependency" in check_import("needy").detail


def test_neuron_placeholders_point_to_the_real_index(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, "nki", "raise ImportError('WRONG PACKAGE')")
    check = check_neuron(device_root=site)
    assert not check.ok
    assert "nki 1.0 is a placeholder" in check.detail
    assert "AWS Neuron package index" in check.detail
    assert "no Neuron device" in check.detail


def test_neuron_without_compiler_command(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nki", "torch_neuronx", "neuronxcc"):
        install(site, monkeypatch, package, "")
    (site / "neuron0").touch()
    monkeypatch.setenv("PATH", str(site))
    assert check_neuron(site).detail == "the compiler command neuronx-cc is not on PATH"


def test_neuron_complete(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nki", "torch_neuronx", "neuronxcc"):
        install(site, monkeypatch, package, "")
    for device in ("neuron0", "neuron1"):
        (site / device).touch()
    compiler = site / "neuronx-cc"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(site))
    check = check_neuron(site)
    assert check.ok
    assert check.detail.endswith("2 device(s)")


def test_compiled_steps_need_a_compiler_and_headers(tmp_path: Path) -> None:
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        check = check_compiler(include=tmp_path)
    assert not check.ok
    assert "g++" in check.detail
    assert "python3-dev" in check.detail
    (tmp_path / "Python.h").touch()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert "python3-dev" not in check_compiler(include=tmp_path).detail


def test_a_clash_names_both_owners() -> None:
    check = check_owner("cuda_kernels", ["bmojo_neuron", "cuda-kernels"])
    assert not check.ok
    assert "bmojo-neuron and cuda-kernels" in check.detail


@pytest.mark.parametrize("owners", [[], ["bmojo-neuron"], ["bmojo_neuron", "bmojo-neuron"]])
def test_our_own_name_is_no_clash(owners: list[str]) -> None:
    assert check_owner("serving", owners).ok


def test_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert check_model(tmp_path).detail.startswith("model.safetensors, tokenizer.json missing in")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    assert check_model(tmp_path).ok


def test_this_machine_is_usable() -> None:
    report = diagnose(owners={})
    assert report.usable
    assert [check.name for check in report.clashes] == list(OUR_PACKAGES)


def test_a_clash_makes_the_report_unusable(tmp_path: Path) -> None:
    report = diagnose(model_path=tmp_path, owners={"serving": ["bmojo-neuron", "serving"]})
    assert not report.usable
    assert not report.model.ok


def test_the_table_shows_every_line_and_takes_brackets_literally() -> None:
    report = Report(
        versions=(Check("python", True, "3.14.1"),),
        backends=(Check("torch (cpu)", False, "odd [bold]reason[/bold]"),),
        model=Check("default model", True, "1.0 MB"),
        clashes=(),
    )
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(report))
    shown = capture.get()
    for text in ("3.14.1", "odd [bold]reason[/bold]", "1.0 MB", "yes", "no"):
        assert text in shown


def test_the_report_is_json() -> None:
    json.dumps(dataclasses.asdict(diagnose(owners={})))
