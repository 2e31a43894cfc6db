"""Helpers in the style of the vendor's library: everything here is allowed by both front ends."""

from dataclasses import dataclass
from enum import Enum

import nki.isa as nisa
import nki.language as nl


class Kind(Enum):
    double = 2
    triple = 3


@dataclass
class Plan(nl.NKIObject):
    kind: Kind
    rows: int = 4
    scratch = None

    def factor(self):
        return float(self.kind.value)


def scaled(tile, plan):
    """The tile times the plan's factor."""
    assert isinstance(plan, Plan), f"plan: expected a Plan, got {plan}"
    print(f"{plan.rows} rows of {tile.shape[1]}")
    factor = plan.factor() if plan.kind == Kind.double else 3.0
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=factor)


def unless_none(tile, bias=None):
    """Only `is` is wrong here."""
    if bias is not None:
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=bias)
