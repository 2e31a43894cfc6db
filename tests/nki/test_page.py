"""The documentation's page has the instructions and the rules of the code."""

from pathlib import Path

from nki_kernels.simulator import page
from nki_kernels.simulator.cost.constants import TABLE
from nki_kernels.simulator.cost.cycles import FORMULAS
from nki_kernels.simulator.instruction import INSTRUCTIONS
from nki_kernels.simulator.rules import RULES

PAGE = Path(__file__).parents[2] / "docs/nki-simulator.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()
    assert page.renewed(text) == text, "run: make -B docs/nki-simulator.md"
    for name in (*INSTRUCTIONS, *RULES):
        assert f"| `{name}` |" in text


def test_engines_follow_the_generation() -> None:
    lines = {line.split("`")[1]: line for line in page.instructions().splitlines()[2:]}
    assert (
        "| vector, gpsimd | vector, scalar, gpsimd | vector, scalar, gpsimd |"
        in lines["tensor_copy"]
    )
    assert "| - | - | vector |" in lines["exponential"]


def test_what_is_written_by_hand_is_kept() -> None:
    text = "before\n<!-- generated: rules -->\n*last year*\n<!-- end -->\nafter\n"
    made = page.renewed(text)
    assert made.startswith("before\n<!-- generated: rules -->")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "last year" not in made
    assert "`psum-bank` | always" in made


def test_the_page_states_each_formula_and_constant_with_its_status() -> None:
    text = PAGE.read_text()
    for name, cost in FORMULAS.items():
        if name in INSTRUCTIONS:
            assert f"| `{name}` | {cost.text} | {cost.status.value} |" in text
    for constant in TABLE:
        (line,) = [one for one in text.splitlines() if one.startswith(f"| `{constant.name}` |")]
        assert f" {constant.value:.6g} | {constant.unit} |" in line
        assert line.endswith(f"| {constant.status.value} | {constant.source} |")
    assert "| trn2 (gen3) | 2.4 | 0.96 | 1.2 | 1.2 | 368 |" in text


def test_the_cost_section_leads_to_the_published_times() -> None:
    for page_ in (PAGE, PAGE.parent / "index.md"):
        assert "(results/nki_anchors.md)" in page_.read_text()
    assert (PAGE.parent / "results/nki_anchors.md").is_file()
