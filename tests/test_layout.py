"""The house: what may lie where, who may import whom, and that each op is found by its name."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bmojo_neuron", "nki_kernels", "cuda_kernels", "serving")
KERNELS = ("nki_kernels", "cuda_kernels")
OPS = ROOT / "bmojo_neuron" / "ops"

TOP_LEVEL = {
    *(".ci", ".gitignore", ".pre-commit-config.yaml"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("Makefile", "constraints.txt", "mkdocs.yml", "pyproject.toml"),
    *PACKAGES,
    *("benchmarks", "docs", "examples", "tests"),
}
LONGEST = 450
LONG_FILES: dict[str, str] = {}  # path -> why it is longer than LONGEST lines
EMBEDDED_MODEL_BYTES = 12_000_000
IMPORTABLE_WITHOUT = (
    *("fastapi", "uvicorn", "starlette", "pydantic_settings", "triton"),
    *("nki", "neuronxcc", "torch_neuronx", "torch_xla", "accelerate", "matplotlib"),
)


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules imported anywhere below `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def ours(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imports(tree)} & set(PACKAGES)


def signature(path: Path) -> str:
    """Parameters and result of the public function that is named as its module."""
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef) and node.name == path.stem:
            result = ast.unparse(node.returns) if node.returns else "unannotated"
            return f"({ast.unparse(node.args)}) -> {result}"
    pytest.fail(f"{path.relative_to(ROOT)}: expected a function named {path.stem}, found none")


def test_top_level_is_the_house() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert found <= TOP_LEVEL, f"not in the house: {sorted(found - TOP_LEVEL)}"


def test_every_package_is_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package
        assert (ROOT / package / "__init__.py").is_file(), package


@pytest.mark.parametrize("package", ["nki_kernels", "cuda_kernels", "serving"])
def test_packages_with_common_names_have_no_logic(package: str) -> None:
    body = parse(ROOT / package / "__init__.py").body
    assert all(isinstance(node, ast.Expr) for node in body), "expected a docstring only"


@pytest.mark.parametrize("package", KERNELS)
def test_a_kernel_has_the_name_and_signature_of_its_op(package: str) -> None:
    for kernel in modules(ROOT / package):
        op = OPS / kernel.name
        assert op.is_file(), f"{package}/{kernel.name} has no definition in bmojo_neuron/ops"
        assert signature(kernel) == signature(op), f"{package}/{kernel.name} differs from its op"


def test_every_op_defines_the_function_of_its_name_and_has_a_test() -> None:
    for op in modules(OPS):
        assert signature(op)
        test = ROOT / "tests" / "ops" / f"test_{op.name}"
        assert test.is_file(), f"{test.relative_to(ROOT)} is missing"


@pytest.mark.parametrize("package", KERNELS)
def test_kernels_import_nothing_of_ours(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        assert ours(parse(path)) <= {package}, path.relative_to(ROOT)


def test_the_model_names_the_server_only_inside_a_command() -> None:
    for path in sorted((ROOT / "bmojo_neuron").rglob("*.py")):
        tree = parse(path)
        if path.name == "cli.py":
            commands = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert {node.name for node in commands if "serving" in ours(node)} <= {"serve"}
            tree.body = [node for node in tree.body if node not in commands]
        assert ours(tree) <= {"bmojo_neuron"}, path.relative_to(ROOT)


def test_the_server_imports_the_model_only() -> None:
    for path in sorted((ROOT / "serving").rglob("*.py")):
        assert ours(parse(path)) <= {"serving", "bmojo_neuron"}, path.relative_to(ROOT)


def test_the_model_imports_without_server_kernels_and_tools() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({IMPORTABLE_WITHOUT!r}))"
    code = f"{blocked}; import bmojo_neuron, bmojo_neuron.cli, bmojo_neuron.doctor"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_file_grows_beyond_what_can_be_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked()
        if path.suffix == ".py"
    }
    long = {name for name, length in lengths.items() if length > LONGEST}
    assert long == set(LONG_FILES), "LONG_FILES lists exactly the long files, each with a reason"


def test_test_folders_are_packages_and_shadow_nothing() -> None:
    folders = {path.parent for path in tracked() if path.match("tests/**/test_*.py")}
    for folder in folders:
        assert (folder / "__init__.py").is_file(), folder.relative_to(ROOT)
        assert folder.name not in PACKAGES, folder.relative_to(ROOT)


def test_the_embedded_model_is_small() -> None:
    model = ROOT / "bmojo_neuron" / "default_model"
    assert sum(path.stat().st_size for path in model.glob("*")) <= EMBEDDED_MODEL_BYTES


def test_no_tracked_text_names_a_package_index() -> None:
    """Where packages come from is the reader's choice, and differs between machines."""
    words = ("--extra-" + "index-url", "--index" + "-url", "/sim" + "ple/")
    texts = [path for path in tracked() if path.suffix in {".md", ".py", ".toml", ".txt", ""}]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in words), path.relative_to(ROOT)
