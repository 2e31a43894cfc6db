"""The simulator as `nki` while the kernels of `tests/nki/kernels` are imported and while they run.

It is taken away again, for the tests of other folders look for a real installation.
"""

from collections.abc import Iterator

import pytest

from nki_kernels import simulator

simulator.install()


def pytest_collection_finish() -> None:
    simulator.uninstall()


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    simulator.install()
    yield
    simulator.uninstall()


@pytest.fixture
def strict() -> Iterator[simulator.Session]:
    """A strict session on trn2."""
    with simulator.session(target="trn2", strict=True) as session:
        yield session
