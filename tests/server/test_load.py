"""Prompts that are refused do not keep the server from answering others."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from bmojo_neuron.text import PromptEncoder
from tests.server.conftest import PATIENCE, Start
from tests.server.test_aborts import post


def test_prompts_are_tokenized_two_at_a_time_and_probes_do_not_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    encode, go = PromptEncoder.__call__, threading.Event()
    running, began = [0], []

    def slow(*args: Any, **how: Any) -> list[int]:
        running[0] += 1
        began.append(running[0])
        assert go.wait(PATIENCE)
        running[0] -= 1
        return encode(*args, **how)

    monkeypatch.setattr(PromptEncoder, "__call__", slow)
    clients = [post(server, prompt="a", session_id=f"s{i}", max_new_tokens=1) for i in range(60)]
    try:
        deadline = time.monotonic() + PATIENCE
        while len(began) < 2:
            assert time.monotonic() < deadline
            threading.Event().wait(0.005)
        for _ in range(5):
            assert server.http.get("/healthz", timeout=2).status_code == 200
            assert server.http.delete("/sessions/none", timeout=2).status_code == 404
            assert server.http.get("/sessions/none", timeout=2).status_code == 404
        assert began == [1, 2]
    finally:
        for client in clients:
            client.close()
    assert server.http.get("/healthz", timeout=2).json()["turns"] == 0
    go.set()
    assert server.generate("a", max_new_tokens=1).status_code == 200
    assert len(began) == 3, "nobody waits for those who left"


@pytest.mark.slow
def test_many_prompts_beyond_the_limit(start: Start) -> None:
    server = start()
    server.http.timeout = 120
    prompt = "ab " * 175_000
    process, before = psutil.Process(), psutil.Process().memory_info().rss
    with ThreadPoolExecutor(20) as pool:
        turns = [pool.submit(server.generate, prompt) for _ in range(20)]
        worst = 0.0
        while not all(turn.done() for turn in turns):
            began = time.monotonic()
            assert server.http.get("/healthz").status_code == 200
            worst = max(worst, time.monotonic() - began)
            assert process.memory_info().rss - before < 2e9
            threading.Event().wait(0.02)
        assert {turn.result().status_code for turn in turns} == {400}
    assert worst < 10  # seconds, on a busy machine; without limits it was 88
