"""From logits to the next token."""

import math

import torch
from torch import Tensor


class Sampler:
    """Greedy choice at temperature 0, otherwise a draw from a generator of this request alone.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely tokens only; None keeps all.
        top_p: then draw among the fewest most likely tokens whose probabilities reach this sum.
        seed: the same seed, prompt and session give the same tokens; None draws a fresh one.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        """The next token; logits: (V,) of any float dtype, on any device.

        Raises:
            ValueError: the largest is no finite number (NaN counts as the largest), so no token can
                be chosen.
        """
        largest = float(logits.max())
        if not math.isfinite(largest):
            raise ValueError(
                f"logits: expected a largest that is finite, got {largest}; the model or its state "
                "is broken"
            )
        if self._temperature == 0:
            return int(logits.argmax())
        # On the host in float64: one seed draws alike on all devices, and no temperature overflows.
        scores, tokens = logits.to("cpu", torch.float64).sort(descending=True, stable=True)
        kept = scores[: self._top_k]
        probabilities = ((kept - kept[0]) / self._temperature).softmax(dim=0)
        before = probabilities.cumsum(dim=0) - probabilities
        probabilities[before >= self._top_p] = 0
        return int(tokens[torch.multinomial(probabilities, 1, generator=self._generator)])
