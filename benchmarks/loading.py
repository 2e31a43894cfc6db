"""Memory and time of loading a large checkpoint, against its size and against transformers.

A random Llama of about 1.5 GB is written to a temporary directory; each loader reads it, and then
every weight, in a process of its own. Prints the peak of resident memory over what the process held
before, as a share of the weights' bytes.

    python benchmarks/loading.py [--gigabytes 1.5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LOADERS = {
    "bmojo_neuron": "from bmojo_neuron import BMojoForCausalLM as Model",
    "transformers": "from transformers import LlamaForCausalLM as Model",
}
CHILD = """
import json, re, sys, time
import torch
{imports}

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before, began = peak(), time.monotonic()
model = Model.from_pretrained(sys.argv[1])
assert all(bool(p.isfinite().all()) for p in model.parameters())
seconds = time.monotonic() - began
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({{"peak": peak() - before, "size": size, "seconds": seconds}}))
"""


def write(path: Path, size: float) -> None:
    """A random Llama of about `size` bytes in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 2048
    per_layer = 4 * (4 * width**2 + 3 * width * 4 * width)
    layers = max(1, round((size - 2 * 4 * 8192 * width) / per_layer))
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=16,
    )
    LlamaForCausalLM(config).save_pretrained(path, max_shard_size="500MB")


def main() -> None:
    """Write, load with each, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=1.5)
    size = parser.parse_args().gigabytes * 1e9
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), size)
        for name, imports in LOADERS.items():
            done = subprocess.run(
                [sys.executable, "-c", CHILD.format(imports=imports), directory],
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name}: {found['size'] / 1e9:.2f} GB of weights, peak "
                f"{found['peak'] / found['size']:.3f} of them, {found['seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
