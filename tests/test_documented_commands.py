"""What the documentation tells a reader to type is typed here, as written and in its order.

Fenced `bash` and `python` blocks of every page that git knows are run, `bash` in the repository's
root, `python` in the page's folder; an HTML comment on the line before a block may say otherwise:

    <!-- not run: REASON -->      the block is left out
    <!-- expect: TEXT -->         its output must contain TEXT

Three things are replaced: the environment's folder `.venv/bin/` by that of this interpreter, the
port by a free one, and `make serve` by the command behind it, started in the background.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bmojo_neuron.model import default_model_path
from bmojo_neuron.training.corpus import load_corpus

ROOT = Path(__file__).parents[1]


def pages() -> list[Path]:
    """Every Markdown file that ships: those that git knows, or all of an unpacked archive."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split("\0")[:-1]
    found = [ROOT / name for name in names] if names else ROOT.rglob("[!.]*.md")
    return sorted(page for page in found if page.is_file() and not in_venv(page))


def in_venv(page: Path) -> bool:
    return any(part.startswith(".venv") for part in page.parts)


PAGES = pages()
BIN = Path(sys.executable).parent
BLOCK = re.compile(
    r"^(?:<!-- (?P<key>not run|expect): (?P<value>.*?) -->\n)?"
    r"^```(?P<language>bash|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BY_OTHER_MEANS = {"make serve", "make test"}  # the server fixture; this very run
START_SECONDS = 120.0
BLOCK_SECONDS = 300.0


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `expect` is empty where any output will do."""

    page: Path
    line: int
    language: str
    text: str
    expect: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(source):
        if match["language"] != language or match["key"] == "not run":
            continue
        line = source.count("\n", 0, match.start("text")) + 1
        expect = match["value"] if match["key"] == "expect" else ""
        found.append(Block(page, line, language, match["text"], expect))
    return found


def here(command: str) -> str:
    return command.replace(".venv/bin/", f"{BIN}/")


def behind_make(target: str, **variables: object) -> str:
    """The last command that `make target` would run."""
    given = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", target, "VENV=.venv", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    )
    return done.stdout.strip().splitlines()[-1]


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that was started as `make serve` starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    command = here(behind_make("serve", PORT=number))
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as out:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        wait_until_healthy(server, number, log)
        yield number
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_healthy(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def run(block: Block, argv: list[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "CURL_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        argv,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BLOCK_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{block.place} failed:\n{block.text}\n{done.stdout}"
    assert block.expect in done.stdout, f"{block.place}: no {block.expect!r} in:\n{done.stdout}"


def test_every_page_that_ships_is_read() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {"README.md", "bmojo_neuron/default_model/README.md", "docs/serving.md"}
    assert not [name for name in names if ".venv" in name or "site-packages" in name]
    assert [block for block in blocks(default_model_path() / "README.md", "python") if block.expect]


def test_the_two_commands_of_the_readme_exist() -> None:
    commands = {block.text.strip() for block in blocks(ROOT / "README.md", "bash")}
    assert commands >= BY_OTHER_MEANS
    assert behind_make("test").endswith("/python -m pytest -n auto")


@needs_curl
@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "bash")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_bash_blocks_run_as_written(page: Path, port: int, tmp_path: Path) -> None:
    for block in blocks(page, "bash"):
        if block.text.strip() not in BY_OTHER_MEANS:
            script = here(block.text).replace("localhost:8000", f"localhost:{port}")
            run(block, ["bash", "-euo", "pipefail", "-c", script], ROOT, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page, "python")],
    ids=lambda block: block.place,
)
def test_python_blocks_run_as_written(block: Block, tmp_path: Path) -> None:
    argv = [sys.executable, "-W", "error::FutureWarning", "-c", block.text]
    run(block, argv, block.page.parent, tmp_path)


def call(port: int, path: str, data: object = None, method: str | None = None) -> str:
    request = urllib.request.Request(
        f"http://localhost:{port}{path}",
        None if data is None else json.dumps(data).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=BLOCK_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


@pytest.mark.slow
def test_what_the_docs_page_shows_is_what_the_embedded_model_answers(port: int) -> None:
    api = json.loads(call(port, "/openapi.json"))
    schemas = api["components"]["schemas"]
    generate = api["paths"]["/generate"]["post"]
    asked = generate["requestBody"]["content"]["application/json"]["schema"]
    shown = generate["responses"]["200"]["content"]["text/event-stream"]["example"]

    def examples(schema: str) -> dict[str, Any]:
        fields = schemas[schema]["properties"].items()
        return {name: about["examples"][0] for name, about in fields if "examples" in about}

    call(port, "/sessions/alice", method="DELETE")
    (example,) = asked["examples"]
    assert call(port, "/generate", example) == shown
    assert json.loads(shown.split("data: ")[1])["text"] == " silver"
    last = json.loads(shown.split("data: ")[2])
    assert examples("Usage") == last["usage"]
    assert examples("SessionRef") | {"id": "alice"} == last["session"]

    session = json.loads(call(port, "/sessions/alice"))
    sizes = examples("SessionResponse").pop("bytes_by_part")
    assert sizes.items() <= session["bytes_by_part"].items()
    said = examples("SessionResponse") | {"bytes_by_part": session["bytes_by_part"]}
    assert said.items() <= session.items()

    refused = json.loads(call(port, "/generate", {"prompt": "x", "max_new_tokens": 0}))
    assert refused["error"] == examples("ErrorBody")


@needs_curl
@pytest.mark.slow
def test_what_the_docs_page_tells_is_recalled_behind_other_text(port: int, tmp_path: Path) -> None:
    text = json.loads(call(port, "/openapi.json"))["info"]["description"]
    tell, ask = re.findall(r"^    curl .*?^    \}'$", text, re.MULTILINE | re.DOTALL)
    filler = load_corpus()["documentation"].heldout[0][:8000] + "\n"
    session = re.search(r'"session_id": "(\w+)"', ask)
    assert session is not None

    def type_in(command: str, expect: str) -> None:
        script = command.replace("localhost:8000", f"localhost:{port}")
        block = Block(ROOT / "docs", 0, "bash", command, expect)
        run(block, ["bash", "-euo", "pipefail", "-c", script], ROOT, tmp_path)

    type_in(tell, '"version":1')
    call(port, "/generate", {"session_id": session[1], "prompt": filler, "max_new_tokens": 1})
    type_in(ask, 'data: {"text":" silver"}')
    held = json.loads(call(port, f"/sessions/{session[1]}"))
    assert held["tokens"] > 2000, "the note must have left the window long ago"
