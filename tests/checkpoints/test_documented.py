"""The README's table of what can be loaded names every family and the versions that were tested;
docs/checkpoints.md shows what `bmojo inspect` prints.
"""

import re
from pathlib import Path

from typer.testing import CliRunner

from bmojo_neuron.checkpoints import FAMILIES
from bmojo_neuron.cli import app
from tests.checkpoints.test_golden import GOLDEN, needs_golden

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


@needs_golden
def test_the_documented_inspection_is_what_the_command_prints(monkeypatch):
    page = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    (sample,) = re.findall(r"(?s)```text\n(format: .*?)```", page)
    monkeypatch.chdir(GOLDEN)
    shown = CliRunner().invoke(app, ["inspect", "dev_bmf_gka"], env={"COLUMNS": "80"}).output
    assert [line.rstrip() for line in shown.splitlines()] == sample.splitlines()
