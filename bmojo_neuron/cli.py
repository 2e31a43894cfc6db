"""The command line `bmojo`: generate, serve, train, convert, inspect, doctor, kernels.

Everything heavy is imported by the command that needs it. A wrong argument ends with exit code 2, a
machine or installation that cannot do what was asked with 1; stderr says which and why.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from bmojo_neuron.text import TextStream

app = typer.Typer(
    name="bmojo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from bmojo_neuron import __version__

        typer.echo(f"bmojo {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print it.")
    ] = False,
) -> None:
    """Train B'MOJO models, load them and talk to them."""


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    model: Annotated[
        Path | None, typer.Option(help="Model directory; the embedded model if not given.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest that make up this.")
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Makes sampling repeatable; drawn if not given."),
    ] = None,
    stream: Annotated[
        bool, typer.Option(help="Print text as it comes, not all of it at the end.")
    ] = True,
    parse_special_tokens: Annotated[
        bool,
        typer.Option(
            "--parse-special-tokens",
            help="Names of special tokens in the prompt are these tokens, not text.",
        ),
    ] = False,
) -> None:
    """Continue a text; prints the continuation alone."""
    if not prompt:
        _fail("--prompt: expected a text, got none", code=2)
    try:
        prompt.encode()
    except UnicodeEncodeError:  # bytes that Python keeps as lone surrogates
        _fail(f"--prompt: expected UTF-8, got {prompt!r}", code=2)
    # No range of typer has an open end, and in older ones NaN passes.
    if not 0 <= temperature <= 2:
        _fail(f"--temperature: expected a number from 0 to 2, got {temperature}", code=2)
    if not 0 < top_p <= 1:
        _fail(f"--top-p: expected a number above 0 and up to 1, got {top_p}", code=2)
    import torch

    from bmojo_neuron.linear import prepack
    from bmojo_neuron.loading import load_pretrained
    from bmojo_neuron.model import default_model_path
    from bmojo_neuron.text import PromptEncoder, TextStream

    network: Any  # transformers' own types do not take it for a generating model
    with _one_line_errors():
        network, tokenizer = load_pretrained(model or default_model_path())
        if tokenizer is None:
            raise ValueError(
                f"--model: expected a tokenizer to read the prompt with, got none in {model}; put "
                "its files there (tokenizer.json), or send prompt_token_ids to `bmojo serve`"
            )
        encode = PromptEncoder(tokenizer)
    prepack(network)
    ids = encode(prompt, parse_special_tokens=parse_special_tokens, add_special_tokens=True)
    if not ids:
        _fail("--prompt: expected a text of at least one token, got none", code=2)

    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    text = TextStream(tokenizer)
    if stream:
        how["streamer"] = _Printer(text)
    if seed is not None:
        torch.manual_seed(seed)
    inputs = torch.tensor([ids])
    mask = torch.ones_like(inputs)
    tokens = network.generate(inputs, attention_mask=mask, max_new_tokens=max_new_tokens, **how)
    if not stream:
        text.start(ids)
        typer.echo("".join(map(text.push, tokens[0, len(ids) :].tolist())) + text.flush())


@app.command()
def serve(
    model: Annotated[
        Path | None,
        typer.Argument(
            envvar="BMOJO_MODEL_PATH", help="Model directory; the embedded model if not given."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="BMOJO_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, envvar="BMOJO_PORT", help="Port to listen on; 0 takes a free one."
        ),
    ] = 8000,
) -> None:
    """Answer over HTTP, with sessions that remember.

    Every other setting of the server is an environment variable BMOJO_NAME.
    """
    from bmojo_neuron.model import default_model_path

    try:
        from serving.app import serve as run_server
        from serving.settings import Settings
    except ModuleNotFoundError as error:
        way = "in the repository, pip install '.[serve]' brings it"
        _fail(f"{error.name} is not installed; {way}", code=1)
    with _one_line_errors():
        run_server(Settings(model_path=model or default_model_path(), host=host, port=port))


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Option(help="Name of what to train: model, data, curriculum.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Model directory to fine-tune on --text, of any family.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 file; its end is held out.")] = None,
    distill: Annotated[
        Path | None,
        typer.Option(
            help="The Transformer that --init was primed from: train the replaced layers alone, "
            "each to answer as the one before it did."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Directory of the run: checkpoints, then model. runs/default if not given, with "
            "--init runs/finetuned.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Fine-tuning: optimiser steps; 1000 if not given.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Fine-tuning: sequences per step; 4 if not given.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Fine-tuning: tokens a sequence; 1024 if not given.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Fine-tuning: peak learning rate; 3e-4 if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fine-tuning: of the batches; 0 if not given.")
    ] = None,
    parse_special_tokens: Annotated[
        bool,
        typer.Option(
            "--parse-special-tokens",
            help="Names of special tokens in the text are these tokens, not text.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoint in the directory, if there is one.")
    ] = True,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Stop after this time; a later run goes on.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Put the model into this package, as its own.")
    ] = False,
) -> None:
    """Train a model from a recipe, or fine-tune one on a text. Can be stopped at any time and
    started again.

    A run that is through prints its report (held-out perplexity, with a recipe recall by distance)
    and leaves its model in OUT/model.
    """
    from transformers.utils.logging import disable_progress_bar

    if (recipe is None) == (init is None):
        _fail(
            "--recipe or --init: expected one of them, got " + ("both", "none")[recipe is None], 2
        )
    options: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "length": length,
        "lr": lr,
        "seed": seed,
        "parse_special_tokens": parse_special_tokens or None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    disable_progress_bar()  # that of each checkpoint; the run has its own
    if init is None:
        of_init = {"text": text, "distill": distill} | options
        _refuse_with("--recipe", [name for name, value in of_init.items() if value is not None])
        _train_recipe(str(recipe), out or Path("runs/default"), resume, max_minutes, install)
        return
    _refuse_with("--init", ["install"] if install else [])
    if text is None:
        _fail("--text: expected a file to fine-tune --init on, got none", code=2)
    from bmojo_neuron.training.finetune import Finetuning, Options

    with _one_line_errors():
        run = Finetuning(
            init, text, out or Path("runs/finetuned"), Options(**options), distill, resume
        )
        run.run(max_minutes)
        if run.step == run.options.steps:
            typer.echo(json.dumps(run.finish(), indent=2))


def _refuse_with(way: str, names: list[str]) -> None:
    if names:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        _fail(f"{given}: not taken with {way}; leave it out", code=2)


def _train_recipe(
    recipe: str, out: Path, resume: bool, max_minutes: float | None, install: bool
) -> None:
    from bmojo_neuron.training.loop import Training
    from bmojo_neuron.training.recipe import RECIPES
    from bmojo_neuron.training.release import install as install_model
    from bmojo_neuron.training.release import release

    if recipe not in RECIPES:
        _fail(f"--recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}", code=2)
    with _one_line_errors():
        training = Training(RECIPES[recipe], out, resume=resume)
    training.run(max_minutes)
    if training.step < len(training.steps):
        if install:
            _fail(
                f"--install: expected a run that is through, got one that stands at step "
                f"{training.step} of {len(training.steps)}; run again to go on",
                code=1,
            )
        return
    typer.echo(json.dumps(release(training, recipe), indent=2))
    if install:
        typer.echo(f"installed in {install_model(out)}", err=True)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Model directory of any known family.")],
    target: Annotated[Path, typer.Argument(help="New directory.")],
    to: Annotated[str, typer.Option(help="Format: bmojo or hybrid_qwen3.")] = "bmojo",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")
    ] = None,
    max_shard_size: Annotated[
        int, typer.Option(min=1, help="Bytes of tensors in one file.")
    ] = 5_000_000_000,
    unfuse: Annotated[
        bool,
        typer.Option(
            "--unfuse",
            help="Of layers that hold two memories for training (*DA, M2*, ...), take the trained "
            "one.",
        ),
    ] = False,
) -> None:
    """Write a checkpoint anew in another format. There and back is the identity."""
    import torch

    from bmojo_neuron.checkpoints.convert import convert as convert_checkpoint

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in kinds:
        _fail(f"--dtype: expected one of {', '.join(kinds)}, got {dtype!r}", code=2)
    with _one_line_errors():
        convert_checkpoint(source, target, to, kinds.get(dtype or ""), max_shard_size, unfuse)


@app.command()
def prime(
    base: Annotated[Path, typer.Argument(help="A Transformer's directory, of any known family.")],
    target: Annotated[Path, typer.Argument(help="New directory.")],
    pattern: Annotated[
        str,
        typer.Option(
            help="A token for each layer, joined by '-': * attention, SWA window, M2 Mamba-2, GDN, "
            "GKA, BMF B'MOJO-F, BM B'MOJO."
        ),
    ],
    mixer: Annotated[str, typer.Option(help="Fading memory of BMF and BM: mamba2, gdn, gka.")] = (
        "mamba2"
    ),
    window: Annotated[int, typer.Option(min=1, help="W of SWA, BMF and BM.")] = 2048,
    eidetic: Annotated[int, typer.Option(min=0, help="Slots of eidetic memory of BM.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
) -> None:
    """Turn a Transformer's checkpoint into a hybrid's, to be trained on from there."""
    from bmojo_neuron.checkpoints.prime import prime as prime_checkpoint

    with _one_line_errors():
        prime_checkpoint(
            base,
            target,
            pattern,
            seed=seed,
            mixer=mixer,
            window=window,
            sliding_window=window,
            eidetic_size=eidetic,
        )


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Model directory of any known family.")],
    tokens: Annotated[int, typer.Option(min=1, help="Length of the session to count.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Tell what a checkpoint is and what a session of it costs, without loading it."""
    from rich.console import Console

    from bmojo_neuron.inspect import inspect as inspect_checkpoint
    from bmojo_neuron.inspect import render

    with _one_line_errors():
        report = inspect_checkpoint(path, tokens)
    if as_json:
        typer.echo(report.to_json())
    else:
        Console().print(render(report))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Tell what this machine can run and, for everything else, why not.

    Exits with 1 if not even the PyTorch CPU backend is usable.
    """
    from rich.console import Console

    from bmojo_neuron.doctor import diagnose, render

    report = diagnose()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"usable": report.usable}, indent=2))
    else:
        Console().print(render(report))
    raise typer.Exit(0 if report.usable else 1)


@app.command()
def kernels() -> None:
    """List the NKI kernels, one per op, and how to run one on a CPU."""
    from importlib import import_module
    from pkgutil import iter_modules

    package = import_module("nki_kernels")
    ops = [module.name for module in iter_modules(package.__path__) if not module.ispkg]
    typer.echo("\n".join(ops) or "no NKI kernels yet: every op runs its PyTorch reference")
    typer.echo("to run any kernel on a CPU: python -m nki_kernels.simulator --help")


class _Printer:
    """What `generate` of transformers wants as its streamer: prints text as tokens come."""

    def __init__(self, text: "TextStream") -> None:
        self._text, self._started = text, False

    def put(self, tokens: "Tensor") -> None:
        """The prompt first, then new tokens."""
        ids = tokens.flatten().tolist()
        if self._started:
            typer.echo("".join(map(self._text.push, ids)), nl=False)
        else:
            self._text.start(ids)
        self._started = True

    def end(self) -> None:
        """No token follows."""
        typer.echo(self._text.flush())


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        _fail(str(error), code=2)
    except OSError as error:
        _fail(str(error), code=1)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"bmojo: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
