"""Fading memories: mixers that stand alone as a layer or inside a B'MOJO layer, one file each.

A mixer maps u (B, T, d) to f (B, T, d) and carries a state of constant size. Each has
`parts(dtype)` (its state) and `forward(u, call, state) -> (f, new_state)`.
"""

from bmojo_neuron.mixers.gdn import GDN
from bmojo_neuron.mixers.gka import GKA
from bmojo_neuron.mixers.mamba import Mamba
from bmojo_neuron.mixers.mamba2 import Mamba2

Mixer = Mamba | Mamba2 | GDN | GKA
MIXERS: dict[str, type[Mamba] | type[Mamba2] | type[GDN] | type[GKA]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "gdn": GDN,
    "gka": GKA,
}
