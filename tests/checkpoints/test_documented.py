"""The README's table of what can be loaded names every family and the versions that were tested."""

import re
from pathlib import Path

from bmojo_neuron.checkpoints import FAMILIES

ROOT = Path(__file__).parents[2]


def test_the_table_names_every_family_and_the_tested_versions():
    readme = (ROOT / "README.md").read_text("utf-8")
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text()))
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| .* \| (.*) \|$", readme))
    del rows["model_type"]  # the header
    assert rows.keys() == set(FAMILIES)
    for family, compared in rows.items():
        if family != "hybrid_qwen3":  # whose versions are those of the golden data
            assert f"transformers {pinned['transformers']}," in compared
    assert f"safetensors {pinned['safetensors']}." in readme
