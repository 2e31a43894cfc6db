"""Run a kernel from the shell and say what it would cost.

    python -m nki_kernels.simulator FILE.py::kernel --args x=float32[128,512] n=4 --report

An argument of `--args` is NAME=VALUE or the path of an .npz file, whose arrays are passed by their
names. VALUE is a dtype of nl with a shape in brackets (random data: standard normal numbers, or
integers 0 to 9), or a Python literal (4, 1e-6, True, None, 'text', (1, 2)).
"""

import argparse
import ast
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nki_kernels.simulator import context, dtypes
from nki_kernels.simulator.context import FRONTENDS, VERSIONS, Session
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.errors import NkiError, NkiInstallError, NkiWarning
from nki_kernels.simulator.hardware import TARGETS
from nki_kernels.simulator.install import install
from nki_kernels.simulator.kernel import Kernel, simulate

TENSOR = re.compile(r"(?P<dtype>\w+)\[(?P<shape>[\d\s,]*)\]")


class Unusable(ValueError):
    """A wrong argument of the command line: exit code 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0, 1 if the kernel is refused, 2 for a wrong argument. Errors of the kernel's own
    Python keep their traceback."""
    options = _parser().parse_args(arguments)
    try:
        session = _session(options)
        install(shadow=options.shadow)
        kernel = load(options.kernel)
        given = values(options.args, options.seed)
        _check_names(kernel, given)
        if options.cores > 1:
            kernel = kernel[options.cores]
        _check_writable(options.svg, options.json)
    except (Unusable, NkiInstallError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    return _run(kernel, given, session, options)


def _run(
    kernel: Kernel, given: dict[str, Any], session: Session, options: argparse.Namespace
) -> int:
    with context.using(session), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NkiWarning)
        try:
            result = kernel(**given)
        except NkiError as error:
            print(f"refused: {error}", file=sys.stderr)
            return 1
        finally:
            for warning in caught:
                print(f"warning: {warning.message}", file=sys.stderr)
    results = [] if result is None else result if isinstance(result, (tuple, list)) else [result]
    for index, array in enumerate(results):
        print(f"output {index}: {_described(array)}")
    if options.report or options.svg or options.json:
        report = session.report()
        if options.report:
            print(report)
        if options.svg:
            options.svg.write_text(report.to_svg(), encoding="utf-8")
        if options.json:
            options.json.write_text(report.to_json() + "\n", encoding="utf-8")
    return 0


def _session(options: argparse.Namespace) -> Session:
    try:
        return context.make(
            *(options.target, options.nki, options.strict, options.frontend),
            loop_limit=options.loop_limit,
        )
    except ValueError as error:  # from the environment: the parser checks the options
        raise Unusable(f"{context.TARGET_VARIABLE}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nki_kernels.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("kernel", metavar="FILE.py::KERNEL", help="source file and name of the kernel")
    add("--args", nargs="*", default=[], metavar="ARG", help="NAME=VALUE, or FILE.npz (above)")
    add("--seed", type=int, default=0, help="of the random data")
    add("--target", choices=sorted(TARGETS), help="default: trn3, or the environment's override")
    add("--nki", choices=VERSIONS, default=VERSIONS[-1], help="version of NKI")
    add("--frontend", choices=FRONTENDS, help="which Python a kernel may use")
    add("--cores", type=int, choices=(1, 2), default=1, help="logical cores: kernel[2](...)")
    add("--strict", action="store_true", help="also refuse what the vendor's simulator lets pass")
    add(
        "--loop-limit",
        type=_positive,
        default=context.LOOP_LIMIT,
        metavar="N",
        help="iterations after which a loop on a register is refused as endless",
    )
    add("--shadow", action="store_true", help="take the place of a real installation of nki")
    add("--report", action="store_true", help="print the cost, modelled")
    add("--svg", type=Path, metavar="OUT", help="write a picture of the modelled schedule")
    add("--json", type=Path, metavar="OUT", help="write the report as JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an int above 0, got {text!r}")
    return int(text)


def load(place: str) -> Kernel:
    """The kernel of `FILE.py::NAME`; the file's folder can be imported from.

    Raises:
        Unusable: no such file or name, or it is not a function.
    """
    file, separator, name = place.rpartition("::")
    if not separator or not name:
        raise Unusable(f"kernel: expected FILE.py::KERNEL, got {place!r}")
    path = Path(file)
    if not path.is_file():
        raise Unusable(f"kernel: expected an existing file, got {file!r}")
    spec = importlib.util.spec_from_file_location(f"kernels_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise Unusable(f"kernel: expected a Python file (.py), got {file!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found) or isinstance(found, type):
        kernels = [key for key, value in vars(module).items() if isinstance(value, Kernel)]
        there = ", ".join(kernels) or "none"
        raise Unusable(f"kernel: expected a function of {file} (kernels: {there}), got {name!r}")
    return simulate(found)


def values(arguments: Sequence[str], seed: int) -> dict[str, Any]:
    """The kernel's arguments by name.

    Raises:
        Unusable: an argument that is neither NAME=VALUE nor an .npz file, or is given twice.
    """
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        if separator and name.strip().isidentifier():
            new = {name.strip(): value(text.strip(), random)}
        elif argument.endswith(".npz"):
            new = _arrays(Path(argument))
        else:
            raise Unusable(f"--args: expected NAME=VALUE or FILE.npz, got {argument!r}")
        twice = sorted(found.keys() & new.keys())
        if twice:
            raise Unusable(f"--args: expected each name once, got {twice[0]!r} twice")
        found |= new
    return found


def value(text: str, random: np.random.Generator) -> Any:
    """A random tensor for `dtype[shape]`, else a Python literal."""
    match = TENSOR.fullmatch(text)
    if match is None:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            expected = "dtype[shape], such as float32[128,512], or a Python literal"
            raise Unusable(f"--args: expected {expected}, got {text!r}") from None
    known = {dtype.name: dtype for dtype in dtypes.ALL if dtype.kind != "packed"}
    dtype = known.get(match["dtype"])
    if dtype is None:
        names = ", ".join(sorted(known))
        raise Unusable(f"--args: expected a dtype of {names}; got {match['dtype']!r}")
    sizes = [size.strip() for size in match["shape"].split(",")]
    if not all(sizes) or not all(int(size) for size in sizes):
        raise Unusable(f"--args: expected sizes of 1 or more in brackets, got {text!r}")
    shape = [int(size) for size in sizes]
    if dtype.is_float:
        return random.standard_normal(shape).astype(dtype.dtype)
    return random.integers(0, 2 if dtype.kind == "bool" else 10, shape).astype(dtype.dtype)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise Unusable(f"--args: expected a readable .npz file, got {path}: {error}") from None


def _check_names(kernel: Kernel, given: dict[str, Any]) -> None:
    signature = inspect.signature(kernel.function)
    try:
        signature.bind(**given)
    except TypeError as error:
        name = getattr(kernel.function, "__name__", "kernel")
        raise Unusable(f"--args: expected those of {name}{signature}; {error}") from None


def _check_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise Unusable(f"output: expected an existing folder, got {str(path.parent)!r}")


def _described(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return repr(array)
    wide = array.astype(np.float64)
    return (
        f"{array.dtype}{list(array.shape)}, mean {wide.mean():.6g},"
        f" from {wide.min():.6g} to {wide.max():.6g}"
    )


if __name__ == "__main__":
    sys.exit(main())
