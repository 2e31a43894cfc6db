from torch import nn
from transformers import Trainer

from tests.model.conftest import kind

__all__ = ["kind", "without_autocast"]


def without_autocast(trainer: Trainer) -> nn.Module:
    """The trained model in float32, as it was before accelerate put bf16 around its forward."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
