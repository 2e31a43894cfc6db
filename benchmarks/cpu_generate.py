"""Prefill, decode and state size on the CPU, against transformers' own models of the same size.

    python benchmarks/cpu_generate.py [--models bmojo,hf-llama] [--rounds 5] [--quick | --write]

Every model has 125M float32 parameters (random, hidden 768, vocabulary 32,000, tied) and is called
through its public forward with its default cache. All models live in one process; each round
measures every model once, in rotated order, so that a ratio compares neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import RESULTS, Spread, environment, footer, require_green, table, write
from bmojo_neuron import BMojoConfig
from bmojo_neuron.compiled import compile_steps
from bmojo_neuron.linear import prepack

PARAMETERS, TOLERANCE = 125e6, 0.04
SIZE: dict[str, Any] = {"hidden_size": 768, "vocab_size": 32_000, "tie_word_embeddings": True}
HEADS: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 12}
DENSE: dict[str, Any] = {**SIZE, **HEADS, "intermediate_size": 2048}

COMPILED = "-compiled"
PLAIN: dict[str, Callable[[], Any]] = {
    "bmojo": lambda: BMojoConfig.bmojo(**DENSE, num_hidden_layers=10),
    "bmojo_f": lambda: BMojoConfig.bmojo_f(**DENSE, num_hidden_layers=10),
    "mamba2": lambda: BMojoConfig.mamba2(**DENSE, num_hidden_layers=13),
    "attention": lambda: BMojoConfig.transformer(**DENSE, num_hidden_layers=14),
}
OURS = PLAIN | {
    name + COMPILED: make for name, make in PLAIN.items() if name != "attention"
}  # full attention is not compiled (its keys grow)
PEERS: dict[str, Callable[[], Any]] = {
    "hf-llama": lambda: transformers.LlamaConfig(**DENSE, num_hidden_layers=14),
    "hf-mistral": lambda: transformers.MistralConfig(
        **DENSE, num_hidden_layers=14, sliding_window=1024
    ),
    "hf-mamba2": lambda: transformers.Mamba2Config(
        **SIZE, num_hidden_layers=27, num_heads=24, head_dim=64, state_size=128, n_groups=1
    ),
    "hf-bamba": lambda: transformers.BambaConfig(
        **DENSE,
        num_hidden_layers=12,
        mamba_n_heads=24,
        mamba_d_state=128,
        attn_layer_indices=[3, 9],
    ),
}

PREFACE = """\
Models of 125M parameters, float32, random weights, measured in turn in one process; median
(min-max) of {rounds} rounds. `hf-` are transformers' own models, run as transformers runs them.
Prefill is one forward over the tokens; a decode step is one token for each row, including the
cache's own upkeep. bmojo sees a window of 256, 256 fading (of 512 in its ring) and 256 eidetic
tokens, bmojo_f the first two; the window of hf-mistral is 1,024. Our linear layers are packed once
at load (decision 0004); `-compiled` models run compiled steps besides (decision 0005).
"""


@dataclass(frozen=True)
class Plan:
    """What is measured: tokens of a prefill, contexts (batch, tokens) to decode from, repeats."""

    prefill: tuple[int, int] = (512, 2048)
    contexts: tuple[tuple[int, int], ...] = ((1, 512), (1, 8192), (4, 512))
    steps: int = 16  # per context and round; the median step counts
    rounds: int = 5

    @property
    def prefill_cases(self) -> list[str]:
        """Names of the prefill measurements, tokens per second."""
        return [f"prefill {tokens:,}" for tokens in self.prefill]

    @property
    def decode_cases(self) -> list[str]:
        """Names of the decode measurements, milliseconds per step."""
        return [f"decode, batch {batch} after {tokens:,}" for batch, tokens in self.contexts]


QUICK = Plan((64, 128), ((1, 64), (1, 256), (4, 64)), 4, 2)


class Subject:
    """One model with its caches; forward is what any caller of transformers would write."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        config = {**OURS, **PEERS}[name]()
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.parameters = sum(p.numel() for p in model.parameters())
        if abs(self.parameters / PARAMETERS - 1) > TOLERANCE:
            raise SystemExit(f"{name}: {self.parameters:,} parameters, not {PARAMETERS:,.0f} +-4%")
        self.model = model.eval()
        self.layout = prepack(self.model) if name in OURS else "as transformers has it"
        if name.endswith(COMPILED):
            compile_steps(self.model, rows=None)  # happens while the contexts are built
        self.cache_name = "cache_params" if config.model_type == "mamba2" else "past_key_values"
        self.caches: list[Any] = []
        self.state_bytes: list[int] = []

    def forward(self, ids: Tensor, cache: Any = None) -> Any:
        """Feed (B, T) tokens after `cache`; returns the cache that holds them."""
        given = {} if cache is None else {self.cache_name: cache}
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **given)[self.cache_name]

    def build_context(self, batch: int, length: int) -> None:
        """Add a cache of `length` tokens, fed in pieces of 512."""
        cache = None
        for piece in tokens(batch, length).split(512, dim=1):
            cache = self.forward(piece, cache)
        self.caches.append(cache)
        self.state_bytes.append(resident_bytes(cache))

    def prefill(self, length: int) -> float:
        """Tokens per second of one forward over `length` tokens."""
        ids = tokens(1, length)
        start = time.perf_counter()
        self.forward(ids)
        return length / (time.perf_counter() - start)

    def decode(self, context: int, batch: int, steps: int) -> float:
        """Median milliseconds of a step of one token for each row; the context grows by `steps`."""
        taken = []
        for column in tokens(batch, steps).split(1, dim=1):
            start = time.perf_counter()
            self.caches[context] = self.forward(column, self.caches[context])
            taken.append((time.perf_counter() - start) * 1e3)
        return median(taken)


def tokens(batch: int, length: int) -> Tensor:
    """(batch, length) random token ids, the same for every model."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, SIZE["vocab_size"], (batch, length), generator=generator)


def resident_bytes(cache: object) -> int:
    """Bytes of all storages that a cache holds on to, each counted once."""
    seen: dict[int, int] = {}
    visited: set[int] = set()

    def visit(item: object) -> None:
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif id(item) in visited or isinstance(item, type):
            return
        elif isinstance(item, list | tuple | dict) or hasattr(item, "__dict__"):
            visited.add(id(item))
            parts = item if isinstance(item, list | tuple | dict) else vars(item)
            for part in parts.values() if isinstance(parts, dict) else parts:
                visit(part)

    visit(cache)
    return sum(seen.values())


def measure(names: list[str], plan: Plan) -> dict[str, Any]:
    """Build all models and their contexts, then run the rounds.

    Returns:
        Per model: parameters, weight layout, state bytes by context, and by case the value of each
        round.
    """
    total = len(names) * (len(plan.contexts) + plan.rounds * len(cases(plan)))
    with torch.inference_mode(), tqdm(total=total, smoothing=0.1) as bar:
        subjects = {}
        for name in names:
            subject = subjects[name] = Subject(name)
            for batch, length in plan.contexts:
                bar.set_description(f"{name}: context of {batch} x {length:,}")
                subject.build_context(batch, length)
                bar.update()
        values: dict[str, dict[str, list[float]]]
        values = {case: {name: [] for name in names} for case in cases(plan)}
        for r in range(plan.rounds):
            turn = r % len(names)
            for name in names[turn:] + names[:turn]:
                for case, value in run_all(subjects[name], plan):
                    bar.set_description(f"round {r + 1}: {name}, {case}")
                    values[case][name].append(value)
                    bar.update()
    return {
        "environment": environment(),
        "plan": asdict(plan),
        "parameters": {name: s.parameters for name, s in subjects.items()},
        "layout": {name: s.layout for name, s in subjects.items()},
        "state_bytes": {name: s.state_bytes for name, s in subjects.items()},
        "values": values,
    }


def cases(plan: Plan) -> list[str]:
    """All measurements of a round, in order."""
    return plan.prefill_cases + plan.decode_cases


def run_all(subject: Subject, plan: Plan) -> Iterator[tuple[str, float]]:
    """One round of one model: each case with its value."""
    for case, length in zip(plan.prefill_cases, plan.prefill, strict=True):
        yield case, subject.prefill(length)
    for i, (case, (batch, _)) in enumerate(zip(plan.decode_cases, plan.contexts, strict=True)):
        yield case, subject.decode(i, batch, plan.steps)


def ratio(above: list[float], below: list[float]) -> Spread:
    """Spread over the rounds of above / below."""
    return Spread.of(a / b for a, b in zip(above, below, strict=True))


def goals(result: dict[str, Any], plan: Plan) -> list[list[str]]:
    """The goals for our models: which, goal, ratio, whether its median reaches it."""
    values, lines = result["values"], []
    names = list(result["parameters"])
    prefill, (short, long, four) = plan.prefill_cases[-1], plan.decode_cases

    def line(name: str, what: str, got: Spread, goal: str, met: bool) -> None:
        lines.append([name, what, goal, got.show(), "met" if met else "not met"])

    for name in [n for n in names if n in OURS]:
        for peer, floor in (("hf-llama", 1.0), ("hf-mamba2", 2.0)):
            if peer in names:
                got = ratio(values[prefill][name], values[prefill][peer])
                line(name, f"{prefill}, speed / {peer}", got, f">= {floor}", got.median >= floor)
        if "hf-llama" in names:
            got = ratio(values[short][name], values[short]["hf-llama"])
            line(name, f"{short}, time / hf-llama", got, "<= 0.6", got.median <= 0.6)
        got = ratio(values[long][name], values[short][name])
        flat = got.median <= 1.05 or got.low <= 1
        line(name, f"{long}, time / after {plan.contexts[0][1]:,}", got, "1 (flat)", flat)
        got = ratio(values[four][name], values[short][name])
        line(name, f"{four}, time / batch 1", got, "<= 1.6", got.median <= 1.6)
    return lines


def render(result: dict[str, Any], plan: Plan) -> str:
    """The result as a page of Markdown."""
    values, names = result["values"], list(result["parameters"])
    ours, peers = [n for n in names if n in OURS], [n for n in names if n in PEERS]
    page = [
        "# Generation on the CPU\n",
        PREFACE.format(rounds=plan.rounds),
        "## Goals\n",
        table(["model", "measured", "goal", "ratio", ""], goals(result, plan)),
    ]
    for case in cases(plan):
        what = "speed" if case in plan.prefill_cases else "time"
        lines = [
            [name, *[ratio(values[case][name], values[case][peer]).show() for peer in peers]]
            for name in ours
        ]
        if peers and ours:
            page += [f"## {case}: {what} relative to\n", table(["model", *peers], lines)]
    speeds = [
        [
            name,
            f"{result['parameters'][name] / 1e6:.1f}M",
            *[Spread.of(values[case][name]).show(0) for case in plan.prefill_cases],
            *[Spread.of(values[case][name]).show(1) for case in plan.decode_cases],
        ]
        for name in names
    ]
    units = [f"{c}, tokens/s" for c in plan.prefill_cases] + [f"{c}, ms" for c in plan.decode_cases]
    page += ["## Speeds\n", table(["model", "parameters", *units], speeds)]
    sizes = [
        [name, *[f"{size / 2**20:,.1f}" for size in result["state_bytes"][name]]] for name in names
    ]
    contexts = [f"batch {batch} after {length:,}" for batch, length in plan.contexts]
    page += ["## Resident state, MiB\n", table(["model", *contexts], sizes)]
    page.append(footer(result["environment"]))
    return "\n".join(page)


def plot(result: dict[str, Any], plan: Plan, path: Path) -> None:
    """Bars of every model: prefill speed, and decode time at both contexts and at batch 4."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(result["parameters"])
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    panels = [(plan.prefill_cases, "tokens/s"), (plan.decode_cases, "ms per step")]
    for axis, (shown, unit) in zip(axes, panels, strict=True):
        width = 0.8 / len(shown)
        for i, case in enumerate(shown):
            at = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(names))]
            axis.bar(at, [median(result["values"][case][n]) for n in names], width, label=case)
        axis.set_xticks(range(len(names)), names, rotation=30)
        axis.set_ylabel(unit)
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Measure, print, and write the result where asked to.

    Raises:
        SystemExit: an option is wrong, or the tests of the ops fail.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    every = [*OURS, *PEERS]
    parser.add_argument("--models", default=",".join(every), help="with commas (default: all)")
    parser.add_argument("--rounds", type=int, help=f"default {Plan().rounds}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the raw result there")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--quick", action="store_true", help="short contexts, to try it out")
    only.add_argument("--write", action="store_true", help="write docs/results/cpu_generate.*")
    args = parser.parse_args()

    names = [name for name in every if name in args.models.split(",")]
    unknown = set(args.models.split(",")) - set(every)
    if unknown:
        parser.error(f"--models: expected some of {', '.join(every)}, got {sorted(unknown)}")
    if args.write and names != every:
        parser.error("--write: a result holds all models; leave --models away, or use --json")
    plan = QUICK if args.quick else Plan()
    if args.rounds is not None:
        plan = Plan(plan.prefill, plan.contexts, plan.steps, args.rounds)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    require_green("tests/ops")

    result = measure(names, plan)
    page = render(result, plan)
    print(page)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.write:
        figure = RESULTS / "cpu_generate.svg"
        page = page.replace("## Goals", f"![speeds]({figure.name})\n\n## Goals", 1)
        print(f"written: {write('cpu_generate', result, page)}")
        plot(result, plan, figure)


if __name__ == "__main__":
    main()
