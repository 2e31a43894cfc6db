"""A server on compiled steps answers as one on plain steps, and compiles only at its start."""

import pytest
import torch
from fastapi.testclient import TestClient
from torch._inductor import config as inductor

from bmojo_neuron.model import run_block
from serving.app import create_app
from serving.settings import Settings
from tests.model.test_compiled import needs_compiler
from tests.server.conftest import byte_tokenizer, tiny_model


@needs_compiler
def test_sessions_on_compiled_steps() -> None:
    answers = []
    for compiled in (False, True):
        torch._dynamo.reset()
        settings = Settings(max_resident_sessions=0, compile_steps=compiled)  # all are evicted
        model = tiny_model()
        app = create_app(settings, model=model, tokenizer=byte_tokenizer())
        assert (model.model.run_block is run_block) is not compiled
        with (
            TestClient(app, base_url="http://localhost") as client,
            torch._dynamo.config.patch(error_on_recompile=True),
        ):
            turn = {"prompt": "in the beginning", "session_id": "a", "max_new_tokens": 20}
            texts = [client.post("/generate", json=turn).json()["text"] for _ in range(2)]
        answers.append(texts)
    assert answers[0] == answers[1]


def test_without_a_compiler_the_server_does_not_start() -> None:
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"compile_steps: expected a C\+\+ .* leave it unset"),
    ):
        create_app(Settings(compile_steps=True), model=tiny_model(), tokenizer=byte_tokenizer())
