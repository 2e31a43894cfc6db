"""Every op's test runs once per backend that has a module of that name."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from bmojo_neuron.ops import BACKENDS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "op" in metafunc.fixturenames:
        name = metafunc.module.__name__.rsplit("test_", 1)[1]
        found = [b for b, package in BACKENDS.items() if find_spec(f"{package}.{name}") is not None]
        metafunc.parametrize("op", [(backend, name) for backend in found], ids=found, indirect=True)


@pytest.fixture
def op(request: pytest.FixtureRequest) -> Callable[..., Any]:
    backend, name = request.param
    function: Callable[..., Any] = getattr(import_module(f"{BACKENDS[backend]}.{name}"), name)
    return function
