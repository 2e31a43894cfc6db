"""B'MOJO: hybrid state-space models with fading and eidetic memory, as Hugging Face models."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bmojo_neuron.causal_lm import BMojoForCausalLM, BMojoForSequenceClassification
from bmojo_neuron.checkpoints.hybrid_qwen3 import HybridQwen3Config
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.huggingface.cache import BMojoCache
from bmojo_neuron.model import BMojoModel

__all__ = [
    "BMojoCache",
    "BMojoConfig",
    "BMojoForCausalLM",
    "BMojoForSequenceClassification",
    "BMojoModel",
]
__version__ = "0.1.0"

AutoConfig.register(BMojoConfig.model_type, BMojoConfig)
AutoConfig.register(HybridQwen3Config.model_type, HybridQwen3Config)
AutoModel.register(BMojoConfig, BMojoModel)
AutoModelForCausalLM.register(BMojoConfig, BMojoForCausalLM)
AutoModelForSequenceClassification.register(BMojoConfig, BMojoForSequenceClassification)
# Who shifts labels (Trainer with label smoothing) or picks a task looks here, not into the above.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[BMojoConfig.model_type] = BMojoForCausalLM.__name__
