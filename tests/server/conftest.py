import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest
import torch
from fastapi import FastAPI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.state import State
from serving.app import create_app
from serving.routes import Service
from serving.server import Server
from serving.settings import Settings

PATIENCE = 20.0  # seconds after which a test that waits gives up


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is byte number i of the byte-level alphabet; 256 opens, 257 ends a text."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def byte_ids(tokenizer: PreTrainedTokenizerFast, data: bytes) -> list[int]:
    """Token ids of raw bytes, which need not be UTF-8."""
    vocab = tokenizer.get_vocab()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [vocab[letters[b]] for b in data]


def tiny_model(kind: str = "bmojo", vocab_size: int = 258) -> BMojoForCausalLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    memory = {"window": 16, "eidetic_size": 16, "bos_token_id": 256, "eos_token_id": 257}
    torch.manual_seed(0)
    make: Callable[..., BMojoConfig] = getattr(BMojoConfig, kind)
    # Wide weights, so that a random model does not say the same byte for ever.
    config = make(
        **sizes, **memory, vocab_size=vocab_size, intermediate_size=64, initializer_range=0.3
    )
    model = BMojoForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[257] = 0  # nor ends its text unasked
    return model


class Control:
    """Stands before the model's `feed`: records, holds back, breaks, and dictates its answers."""

    def __init__(self, model: BMojoForCausalLM) -> None:
        self.fed: list[list[int]] = []
        self.error: BaseException | None = None
        self.script: list[int] = []  # tokens that the next calls make the most likely ones
        self._allowed: int | None = None
        self._changed = threading.Condition()
        self._feed = model.feed
        model.feed = self.feed  # type: ignore[method-assign]

    def feed(self, ids: Tensor, state: State, donate: bool = False) -> tuple[Tensor, State]:
        with self._changed:
            self.fed.append(ids[0].tolist())
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._allowed != 0, PATIENCE), "held too long"
            if self._allowed is not None:
                self._allowed -= 1
        logits, state = self._feed(ids, state, donate=donate)
        if self.error is not None:
            raise self.error
        if self.script:
            logits = torch.zeros_like(logits)
            logits[0, self.script.pop(0)] = 1
        return logits, state

    def hold(self, after: int = 0) -> None:
        """Let the model do so many more calls, then hold it back."""
        with self._changed:
            self._allowed = after

    def release(self) -> None:
        with self._changed:
            self._allowed = None
            self._changed.notify_all()

    def wait_for_calls(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.fed) >= count, PATIENCE), self.fed


@dataclass(frozen=True)
class Running:
    """A server on a real socket, and the parts inside."""

    http: httpx.Client
    service: Service
    control: Control
    server: Server
    thread: threading.Thread

    @property
    def address(self) -> tuple[str, int]:
        return str(self.http.base_url.host), int(self.http.base_url.port or 0)

    def generate(self, prompt: str, **fields: object) -> httpx.Response:
        return self.http.post("/generate", json={"prompt": prompt, **fields})

    def wait_until_idle(self) -> None:
        for _ in range(int(PATIENCE / 0.01)):
            if self.service.engine.turns == 0:
                return
            threading.Event().wait(0.01)
        raise AssertionError("a turn does not end")


@contextmanager
def run_server(app: FastAPI, control: Control) -> Iterator[Running]:
    server = Server(app, log_level="warning")
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        threading.Event().wait(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
        try:
            yield Running(http, app.state.service, control, server, thread)
        finally:
            control.release()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server does not stop"


Start = Callable[..., Running]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def start(tokenizer: PreTrainedTokenizerFast) -> Iterator[Start]:
    """Starts servers with settings of the test's choice."""
    with ExitStack() as stack:

        def run(kind: str = "bmojo", **settings: object) -> Running:
            model = tiny_model(kind)
            control = Control(model)
            app = create_app(Settings(port=0, **settings), model=model, tokenizer=tokenizer)
            return stack.enter_context(run_server(app, control))

        yield run
