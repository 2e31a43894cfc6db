"""Makes the parts, hands them to each other, starts and stops them."""

import gc
import logging
import logging.config
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from transformers import PreTrainedTokenizerBase

from bmojo_neuron import BMojoForCausalLM, __version__
from bmojo_neuron.compiled import compile_steps
from bmojo_neuron.linear import prepack
from bmojo_neuron.loading import check_tokenizer, load_pretrained
from bmojo_neuron.text import PromptEncoder
from serving.doors import Doors, HeadAsGet
from serving.engine import Engine, end_tokens
from serving.errors import add_error_handlers
from serving.routes import Service, build_router
from serving.server import LOGGING, Server, bind
from serving.sessions import MemoryStore
from serving.settings import Settings

logger = logging.getLogger(__name__)

_DESCRIPTION = """\
A B'MOJO model with sessions: a session keeps the model's own state, whose size does not grow with
the conversation, so each turn costs its new tokens only. Tell it something,

    curl localhost:8000/generate --json '{
      "session_id": "bob", "prompt": "Note: Jane is silver.\\n", "max_new_tokens": 1
    }'

send any text to the same session, then ask:

    curl -N localhost:8000/generate --json '{
      "session_id": "bob", "prompt": "\\nQuestion: Jane\\nAnswer:",
      "max_new_tokens": 1, "stream": true
    }'

The embedded model recalls notes of this form, with names and values of your choice, numbers too.
`Correction: Jane is gold.` replaces a note; a name that was never told is answered by ` unknown`.
How far back it can answer, and how often it errs, stands in `docs/results/recall.md`.

Sessions live in memory. When there are too many, the longest unused idle one is dropped; a GET of
it is then answered 404. Every error has one shape: `{"error": {"code", "message", "param",
"expected", "got"}}`; answers with a Retry-After header may be tried again.
"""


def create_app(
    settings: Settings,
    *,
    model: BMojoForCausalLM | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> FastAPI:
    """The server, ready to be run by any ASGI server; its lifespan starts and stops the engine.

    Args:
        settings: see `Settings`.
        model: instead of the one at `settings.model_path`.
        tokenizer: of that model; without one, prompts are token ids.

    Raises:
        ValueError: no model can be loaded from the path, model and tokenizer do not belong
            together, or steps are to be compiled and cannot be.
    """
    if model is None:
        if tokenizer is not None:
            raise ValueError("model: expected the tokenizer's model beside it, got none")
        model, tokenizer = load_pretrained(settings.model_path)
        logger.info("%s: %s", settings.model_path, prepack(model))
    model.train(False)
    encode = None
    if tokenizer is None:
        logger.warning("the model has no tokenizer: prompts are token ids (prompt_token_ids)")
    else:
        check_tokenizer(model, tokenizer)
        encode = PromptEncoder(tokenizer)
    if settings.compile_steps:
        logger.info("compiling the model's steps: a minute, or seconds from torch's cache")
        began = time.monotonic()
        try:
            compile_steps(model)
        except RuntimeError as error:
            raise ValueError(f"compile_steps: {error}; or leave it unset") from error
        logger.info("compiled the model's steps in %.1f s", time.monotonic() - began)
    store = MemoryStore(
        settings.max_sessions, settings.max_resident_sessions, model.state_parts(), model.device
    )
    engine = Engine(
        model,
        store,
        bos=None if tokenizer is None else tokenizer.bos_token_id,
        eos=end_tokens(model),
        max_waiting=settings.max_queued_turns,
        prefill_piece=settings.prefill_piece,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await run_in_threadpool(engine.stop)

    app = FastAPIOffline(
        title="bmojo-neuron",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # of another host
    )
    app.state.service = Service(settings, tokenizer, encode, engine, store)
    app.include_router(build_router(app.state.service))
    add_error_handlers(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Doors, hosts=settings.hosts)
    if settings.listens_everywhere and settings.allowed_hosts is None:
        logger.warning(
            "host %s: listens on every address, but answers requests to %s only; "
            "BMOJO_ALLOWED_HOSTS takes other names, or * for any",
            settings.host,
            ", ".join(sorted(settings.hosts)),
        )
    return app


def serve(settings: Settings) -> None:
    """Run the server until SIGINT or SIGTERM.

    Raises:
        OSError: the address cannot be listened on.
        OSError, ValueError: see `create_app`.
    """
    logging.config.dictConfig(LOGGING)
    with ExitStack() as opened, suppress(KeyboardInterrupt):
        sockets = [opened.enter_context(one) for one in bind(settings.host, settings.port)]
        server = Server(create_app(settings))
        # What is loaded stays: to walk all of it would cost each large JSON document a second.
        gc.freeze()
        server.run(sockets)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more Ctrl-C ends what is left, silently
