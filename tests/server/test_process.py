"""The server as its operator sees it: what it writes, and how it ends."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.model.test_compiled import needs_compiler
from tests.server.conftest import PATIENCE, byte_tokenizer, tiny_model
from tests.server.test_aborts import NEXT
from tests.server.test_connections import shaped
from tests.server.test_errors import HEAD, receive

START_S = 120.0
RUN = "from bmojo_neuron.cli import app; app()"


@dataclass(frozen=True)
class Process:
    """`bmojo serve` in a process of its own, and where it writes."""

    running: "subprocess.Popen[bytes]"
    log: Path

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert self.running.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.wait_for(r"running on http://127\.0\.0\.1:(\d+)")[1])


Launch = Callable[..., Process]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def launch(model: Path, tmp_path: Path) -> Iterator[Launch]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*options: str, limit: Callable[[], object] | None = None, **env: str) -> Process:
        log = tmp_path / f"log{len(started)}.txt"
        given = options or ("--port", "0")
        command = [sys.executable, "-c", RUN, "serve", str(model), *given]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
        with log.open("wb") as out:
            started.append(
                subprocess.Popen(command, stdout=out, stderr=out, env=environment, preexec_fn=limit)
            )
        return Process(started[-1], log)

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_half_a_body_does_not_delay_sigterm(launch: Launch) -> None:
    process = launch()
    with socket.create_connection(process.address, timeout=PATIENCE) as connection:
        connection.sendall(HEAD + b'Content-Length: 99\r\nExpect: 100-continue\r\n\r\n{"prompt"')
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # its body is being read
        began = time.monotonic()
        process.running.terminate()
        shaped(receive(connection), 503, "unavailable")
        assert process.running.wait(PATIENCE) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 5
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_without_a_traceback(launch: Launch, times: int) -> None:
    process = launch(BMOJO_MAX_NEW_TOKENS="1000000")
    body = b'{"prompt": "a", "max_new_tokens": 1000000, "stream": true}'
    with socket.create_connection(process.address, timeout=PATIENCE) as connection:
        if times == 2:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        for _ in range(times):
            process.running.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.running.wait(PATIENCE) == (0 if times == 1 else 130)
        assert time.monotonic() - began < 5
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "Error" not in log


def test_a_port_in_use_is_noticed_before_the_model_is_loaded(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = launch("--port", str(port))
        assert process.running.wait(START_S) == 1
    assert process.log.read_text() == (
        f"bmojo: 127.0.0.1, port {port}: address already in use; --port takes another one\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MAX_SESSIONS", "0", 'greater than or equal to 1, got "0"'),
        ("COMPILE_STEPS", "perhaps", "a valid boolean"),
        ("ALLOWED_HOSTS", "a b", "names without scheme and port"),
    ],
)
def test_a_wrong_setting_is_named_as_its_variable(
    launch: Launch, name: str, value: str, expected: str
) -> None:
    process = launch(**{f"BMOJO_{name}": value})
    assert process.running.wait(START_S) == 2
    [line] = process.log.read_text().splitlines()
    assert line.startswith(f"bmojo: BMOJO_{name}: expected {expected}")
    assert line.endswith(f'got "{value}"')


def test_out_of_descriptors_is_one_line_a_second_and_passes(launch: Launch) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    process = launch(limit=limit)
    address = process.address
    began = time.monotonic()
    clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(150)]
    threading.Event().wait(3)
    seconds = time.monotonic() - began
    for client in clients:
        client.close()
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(NEXT)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    log = process.log.read_text()
    assert 1 <= log.count("Too many open files") <= seconds + 1
    assert "Traceback" not in log
    assert log.count("\n") < 20
    process.running.terminate()
    process.running.wait(PATIENCE)
    assert "Traceback" not in process.log.read_text()


def test_our_own_log_lines_appear(launch: Launch, model: Path) -> None:
    launch().wait_for(rf"INFO: +{re.escape(str(model))}: \w+")  # what was done to its weights


@needs_compiler
@pytest.mark.slow
def test_compiling_says_that_it_begins_and_how_long_it_took(launch: Launch) -> None:
    process = launch(BMOJO_COMPILE_STEPS="1")
    process.wait_for(r"INFO: +compiling the model's steps")
    process.wait_for(r"INFO: +compiled the model's steps in \d+\.\d s")
