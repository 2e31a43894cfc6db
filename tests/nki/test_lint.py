"""The source lint: what each front end refuses, in the kernel and in what it calls."""

import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, NkiWarning, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.kernels import styles

X = np.arange(8, dtype=np.float32).reshape(4, 2)


def through(x: Any, work: Callable[[Any], Any]) -> Any:
    """x through an SBUF tile on which `work` is done."""
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, x.dtype)
    nisa.dma_copy(tile, x)
    work(tile)
    nisa.dma_copy(out, tile)
    return out


def compares_identity(x: Any) -> None:
    assert x is not None


def keyword_only(x: Any, *, scale: float = 1.0) -> None:
    pass


def star_arguments(*xs: Any) -> None:
    pass


def star_call(x: Any) -> None:
    print(*x.shape)


def double_star_call(x: Any) -> None:
    options = {"dtype": nl.float32}
    nl.ndarray((2, 2), **options)


def a_lambda(x: Any) -> None:
    half = lambda n: n // 2  # noqa: E731
    assert half(4) == 2


def comprehension(x: Any) -> None:
    assert [n for n in x.shape]  # noqa: C416


def dict_comprehension(x: Any) -> None:
    assert {str(n): n for n in x.shape}


def generator_expression(x: Any) -> None:
    assert sum(n for n in x.shape)


def pairs() -> Any:
    yield 1


def generator(x: Any) -> None:
    for _ in pairs():
        pass


def tries(x: Any) -> None:
    try:  # noqa: SIM105
        assert x.shape
    except ValueError:
        pass


COUNT = 0


def counts(x: Any) -> None:
    global COUNT
    COUNT = COUNT + 1


def a_set(x: Any) -> None:
    assert 4 in {3, 4}


def number_keys(x: Any) -> None:
    assert {1: "a"}[1]


def a_complex(x: Any) -> None:
    assert 1j


def reflects(x: Any) -> None:
    assert getattr(x, "shape")  # noqa: B009


class Plain:
    rows = 4


def a_class(x: Any) -> None:
    assert Plain().rows


class Base(nl.NKIObject):
    rows: int = 4


class Derived(Base):
    columns: int = 2


def a_subclass(x: Any) -> None:
    assert Derived().rows


PARSER = {
    "python-is": [compares_identity],
    "python-keyword-only": [keyword_only],
    "python-star-args": [star_arguments, star_call, double_star_call],
    "python-lambda": [a_lambda],
    "python-comprehension": [comprehension, dict_comprehension],
    "python-generator": [generator_expression, generator],
    "python-try": [tries],
    "python-global": [counts],
    "python-value": [a_set, number_keys, a_complex],
    "python-reflection": [reflects],
    "python-class": [a_class, a_subclass],
}
CASES = [(rule, kernel) for rule, kernels in PARSER.items() for kernel in kernels]


@pytest.mark.parametrize(("rule", "kernel"), CASES, ids=[kernel.__name__ for _, kernel in CASES])
def test_the_parser_rejects_and_the_tracer_runs(rule: str, kernel: Any) -> None:
    with session(nki="0.6", strict=True), pytest.raises(NkiValidationError) as caught:
        jit(kernel)(X)
    assert caught.value.rule == rule
    file, line = caught.value.line.rsplit(":", 1)
    seen = pairs if kernel is generator else Plain if kernel is a_class else kernel
    seen = Derived if kernel is a_subclass else seen
    lines, first = inspect.getsourcelines(seen)
    assert file == __file__
    assert first <= int(line) < first + len(lines)
    with session(nki="0.6"), pytest.warns(NkiWarning, match=rule) as given:
        [jit(kernel)(X) for _ in range(2)]
    assert len(given) == 1
    with session(nki="0.7", strict=True):
        jit(kernel)(X)


@pytest.mark.parametrize("nki", ["0.3", "0.6", "0.7"])
def test_the_style_of_the_vendors_library_is_accepted(nki: str) -> None:
    def kernel(x: Any, plan: Any) -> Any:
        return through(x, functools.partial(work, plan))

    def work(plan: Any, tile: Any) -> None:
        styles.scaled(tile, plan)
        row = 0
        while row < 2:
            row += 1
            if row == 1:
                continue
            break

    with session(target="trn2", nki=nki, strict=True):
        found = jit(kernel)(X, styles.Plan(styles.Kind.triple))
    np.testing.assert_array_equal(found, 3 * X)


def test_helper_modules_are_read_too() -> None:
    def kernel(x: Any) -> Any:
        return through(x, styles.unless_none)

    with session(nki="0.6", strict=True), pytest.raises(NkiValidationError) as caught:
        jit(kernel)(X)
    assert caught.value.rule == "python-is"
    assert "styles.py:" in caught.value.line
    assert "bias is not None" in caught.value.got


def test_helpers_behind_partials_tables_methods_and_arguments_are_read() -> None:
    class Config(nl.NKIObject):
        rows: int = 4

        def check(self) -> None:
            assert self.rows is not None

    table = {"tries": tries}
    partial = functools.partial(a_lambda)

    def by_table(x: Any) -> None:
        table["tries"](x)

    def by_partial(x: Any) -> None:
        partial(x)

    def by_argument(x: Any, config: Any) -> None:
        config.check()

    for kernel, extra, rule in [
        (by_table, (), "python-try"),
        (by_partial, (), "python-lambda"),
        (by_argument, (Config(),), "python-is"),
    ]:
        with session(nki="0.5", strict=True), pytest.raises(NkiValidationError) as caught:
            jit(kernel)(X, *extra)
        assert caught.value.rule == rule


def test_a_local_name_is_not_taken_for_a_helper_of_that_name() -> None:
    def kernel(x: Any) -> None:
        tries = 3
        assert tries

    with session(nki="0.6", strict=True):
        jit(kernel)(X)


def test_the_front_end_follows_the_version_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**options: Any) -> bool:
        with session(strict=True, **options):
            try:
                jit(a_lambda)(X)
            except NkiValidationError:
                return True
        return False

    assert [refused(nki=nki) for nki in ("0.3", "0.6", "0.7")] == [True, True, False]
    assert refused(nki="0.7", frontend="parser")
    assert not refused(nki="0.6", frontend="tracer")
    with pytest.raises(ValueError, match=r"frontend.*0\.5"), session(nki="0.5", frontend="tracer"):
        pass
    monkeypatch.setenv("NKI_COMPILER_FRONTEND", "custom")
    assert refused(nki="0.7")


def test_a_kernel_without_source_is_refused_by_the_parser_only() -> None:
    members: dict[str, Any] = {}
    exec("def kernel(x): pass", members)
    with session(nki="0.7", strict=True):
        jit(members["kernel"])(X)
    with session(nki="0.6", strict=True), pytest.raises(NkiValidationError, match="python-source"):
        jit(members["kernel"])(X)


def test_a_list_as_argument_is_refused_by_the_parser_only() -> None:
    def kernel(xs: Any) -> None:
        assert len(xs) == 2

    with session(nki="0.7", strict=True):
        jit(kernel)([X, X])
    with session(nki="0.6", strict=True), pytest.raises(NkiValidationError, match="list-argument"):
        jit(kernel)([X, X])


COUNTER = np.array([[3]], np.int32)


def branch_not_taken(n: Any) -> None:
    count = nisa.scalar_load(n)
    if n.shape[0] == 2 and count:
        pass


def while_register(n: Any) -> None:
    left = nisa.register_alloc(0)
    while left:
        pass


def range_of_a_sum(n: Any) -> None:
    count = nisa.scalar_load(n)
    more = count + 1
    for _ in range(more):
        pass


def loop_index_as_int(n: Any) -> None:
    def body(i: Any) -> None:
        if n.shape[0] == 2:
            int(i)

    nl.fori_loop(0, 2, body)


def conditional_expression(n: Any) -> None:
    assert (1 if nisa.scalar_load(n) > 2 else 0) == 1


@pytest.mark.parametrize(
    ("kernel", "place"),
    [
        (branch_not_taken, "if"),
        (while_register, "while"),
        (range_of_a_sum, r"range\(\)"),
        (loop_index_as_int, r"int\(\)"),
        (conditional_expression, "if"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_tracer_has_no_run_time_value_in_python(kernel: Any, place: str) -> None:
    with session(target="trn2"), pytest.raises(NkiValidationError, match=place) as caught:
        jit(kernel)(COUNTER)
    assert caught.value.rule == "tensor-value"
    lines, first = inspect.getsourcelines(kernel)
    assert first <= int(caught.value.line.rsplit(":", 1)[1]) < first + len(lines)


def test_what_the_source_does_not_show_is_refused_at_run_time_as_a_type_error() -> None:
    def passed_on(value: Any) -> None:
        if value > 1:
            pass

    def kernel(n: Any) -> None:
        held = [nisa.scalar_load(n)]
        passed_on(held[0])

    with session(target="trn2"), pytest.raises(TypeError, match="run-time NkiScalar"):
        jit(kernel)(COUNTER)


def test_a_run_time_value_is_compared_with_none_only() -> None:
    def kernel(n: Any) -> None:
        count = nisa.scalar_load(n)
        if count == None:  # noqa: E711
            raise AssertionError

    def equal(n: Any) -> None:
        held = (nisa.scalar_load(n),)
        assert held[0] == 3

    with session(target="trn2", strict=True):
        jit(kernel)(COUNTER)
        with pytest.raises(TypeError):
            jit(equal)(COUNTER)


def test_a_name_with_two_meanings_is_left_to_the_run() -> None:
    def kernel(n: Any) -> None:
        count = nisa.scalar_load(n)
        count = 3
        if count:
            pass
        for i in range(2):
            assert i < 2

        def body(i: Any) -> None:
            nisa.memset(nl.ndarray((1, 1), nl.float32), 0.0)

        nl.fori_loop(0, 2, body)

    with session(target="trn2", strict=True):
        jit(kernel)(COUNTER)


def test_an_import_of_the_old_compiler_is_refused_from_0_4(tmp_path: Path) -> None:
    def kernel(x: Any) -> None:
        if x.shape[0] == 0:
            import neuronxcc.nki.language  # noqa: F401

    with session(nki="0.3", strict=True):
        jit(kernel)(X)
    for nki in ("0.4", "0.7"):
        with session(nki=nki), pytest.raises(NkiValidationError, match="old-compiler") as caught:
            jit(kernel)(X)
        assert "test_lint.py:" in caught.value.line


def test_the_session_without_a_name_warns_once() -> None:
    def kernel(x: Any) -> None:
        nisa.memset(nl.ndarray((4, 2), nl.float32), 0)

    with pytest.warns(NkiWarning, match="memset-type"):
        jit(kernel)(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jit(kernel)(X)
