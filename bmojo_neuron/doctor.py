"""What this machine can run, and for everything it cannot: why not and what would help.

`diagnose()` only looks (it imports what it reports on, and changes and downloads nothing) and
returns a frozen `Report`; `render()` draws it as a table and `dataclasses.asdict` makes it JSON.
"""

import importlib
import importlib.metadata
import platform
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from rich.console import Group
from rich.table import Table
from rich.text import Text

OUR_DISTRIBUTION = "bmojo-neuron"
OUR_PACKAGES = ("bmojo_neuron", "nki_kernels", "cuda_kernels", "serving")
REQUIRED = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
NEURON_PACKAGES = {"nki": "nki", "torch_neuronx": "torch-neuronx", "neuronxcc": "neuronx-cc"}
PLACEHOLDER_MARK = "WRONG PACKAGE"
NEURON_ADVICE = (
    "the real packages come from the AWS Neuron package index (setup page of the Neuron "
    "documentation), not from the public one"
)


@dataclass(frozen=True)
class Check:
    """One line of the report: `detail` holds a version if `ok`, else the reason and the way out."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All that `diagnose` found; `usable` says whether the PyTorch CPU backend can run."""

    versions: tuple[Check, ...]
    backends: tuple[Check, ...]
    model: Check
    clashes: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """True if every required package imports, the CPU backend runs and no name clashes."""
        return all(check.ok for check in (*self.versions, self.backends[0], *self.clashes))


def diagnose(
    model_path: Path | None = None,
    owners: Mapping[str, Sequence[str]] | None = None,
    device_root: Path = Path("/dev"),
) -> Report:
    """Examine this machine.

    Args:
        model_path: the embedded model's directory; None means the one inside this package.
        owners: import package -> distributions that ship it; None asks the installed metadata.
        device_root: where device files are looked for.
    """
    embedded = Path(__file__).parent / "default_model" if model_path is None else model_path
    shipped_by = importlib.metadata.packages_distributions() if owners is None else owners
    return Report(
        versions=(
            Check("python", True, platform.python_version()),
            *(check_import(name) for name in REQUIRED),
        ),
        backends=(
            check_torch_cpu(),
            check_compiler(),
            check_cuda(),
            check_neuron(device_root),
        ),
        model=check_model(embedded),
        clashes=tuple(check_owner(name, shipped_by.get(name, ())) for name in OUR_PACKAGES),
    )


def check_import(package: str, distribution: str | None = None) -> Check:
    """Import `package`; if that fails, say whether it is absent, a placeholder or broken."""
    distribution = distribution or package
    module = _import(package)
    if isinstance(module, ModuleType):
        return Check(package, True, _version(distribution) or "unknown version")
    installed = _version(distribution)
    label = f"{distribution} {installed}" if installed else distribution
    if _is_placeholder(distribution, module):
        reason = f"{label} is a placeholder that refuses to import; uninstall it"
    elif isinstance(module, ModuleNotFoundError) and module.name == package and not installed:
        reason = f"{distribution} is not installed"
    else:
        reason = f"{label} fails to import ({_first_line(module)})"
    return Check(package, False, reason)


def check_torch_cpu() -> Check:
    """The reference ops on the CPU, which need nothing but torch."""
    torch = check_import("torch")
    if not torch.ok:
        return Check("torch (cpu)", False, torch.detail)
    return Check(
        "torch (cpu)", True, f"{importlib.import_module('torch').get_num_threads()} threads"
    )


def check_compiler(include: Path | None = None) -> Check:
    """What compiled steps need on a CPU: a C++ compiler and Python's headers."""
    name = "compiled steps (cpu)"
    torch = check_import("torch")
    if not torch.ok:
        return Check(name, False, torch.detail)
    include = Path(sysconfig.get_path("include")) if include is None else include
    missing, compiler = [], ""
    try:
        compiler = importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except RuntimeError:
        missing.append("no C++ compiler on PATH (Debian: g++)")
    if not (include / "Python.h").is_file():
        missing.append(f"Python's headers are not in {include} (Debian: python3-dev)")
    return Check(name, not missing, "; ".join(missing) or compiler)


def check_cuda() -> Check:
    """The Triton kernels: a CUDA device that torch can use, and triton."""
    name = "triton (cuda)"
    torch = check_import("torch")
    if not torch.ok:
        return Check(name, False, torch.detail)
    cuda = importlib.import_module("torch").cuda
    missing = []
    if not cuda.is_available():
        missing.append("torch finds no CUDA device (torch.cuda.is_available() is False)")
    triton = check_import("triton")
    if not triton.ok:
        missing.append(f"{triton.detail} (pip install '.[cuda]' brings it on Linux)")
    if missing:
        return Check(name, False, "; ".join(missing))
    return Check(name, True, f"triton {triton.detail} on {cuda.get_device_name(0)}")


def check_neuron(device_root: Path) -> Check:
    """The NKI kernels: nki, torch_neuronx, the compiler and a device, each answered apart."""
    name = "nki (neuron)"
    packages = [check_import(package, dist) for package, dist in NEURON_PACKAGES.items()]
    missing = [check.detail for check in packages if not check.ok]
    if missing:
        missing.append(NEURON_ADVICE)
    if packages[-1].ok and shutil.which("neuronx-cc") is None:
        missing.append("the compiler command neuronx-cc is not on PATH")
    devices = sorted(device_root.glob("neuron[0-9]*"))
    if not devices:
        missing.append(f"no Neuron device ({device_root / 'neuron*'})")
    if missing:
        return Check(name, False, "; ".join(missing))
    versions = ", ".join(f"{check.name} {check.detail}" for check in packages)
    return Check(name, True, f"{versions}; {len(devices)} device(s)")


def check_model(path: Path) -> Check:
    """The embedded default model: configuration, weights and tokenizer."""
    files = ("config.json", "model.safetensors", "tokenizer.json")
    absent = [name for name in files if not (path / name).is_file()]
    if absent:
        reason = f"{', '.join(absent)} missing in {path}; 'bmojo train --recipe default' makes them"
        return Check("default model", False, reason)
    size = sum((path / name).stat().st_size for name in files)
    return Check("default model", True, f"{size / 1e6:.1f} MB in {path}")


def check_owner(package: str, distributions: Sequence[str]) -> Check:
    """Whether another distribution ships an import package of the same name as ours."""
    others = sorted({name for name in distributions if _canonical(name) != OUR_DISTRIBUTION})
    if others:
        owners = " and ".join((OUR_DISTRIBUTION, *others))
        reason = f"shipped by {owners}; uninstall {', '.join(others)} or use another environment"
        return Check(package, False, reason)
    return Check(package, True, OUR_DISTRIBUTION)


def render(report: Report) -> Group:
    """A report as tables for a rich console."""
    sections = {
        "Packages": report.versions,
        "Backends": report.backends,
        "Model": (report.model,),
        "Import names": report.clashes,
    }
    return Group(*(_table(title, checks) for title, checks in sections.items()))


def _table(title: str, checks: Sequence[Check]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, min_width=60)
    for check in checks:
        mark = Text("yes", style="green") if check.ok else Text("no", style="red")
        table.add_row(Text(check.name), mark, Text(check.detail))
    return table


def _import(package: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(package)
    except Exception as error:  # a foreign package may raise anything when imported
        return error


def _is_placeholder(distribution: str, error: object) -> bool:
    if PLACEHOLDER_MARK in str(error):
        return True
    try:
        description = importlib.metadata.metadata(distribution).json.get("description", "")
    except importlib.metadata.PackageNotFoundError:
        return False
    return PLACEHOLDER_MARK in description


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"
