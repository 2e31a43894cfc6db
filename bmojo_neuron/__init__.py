"""B'MOJO: hybrid state-space models with fading and eidetic memory, as Hugging Face models."""

from transformers import AutoConfig, AutoModelForCausalLM

from bmojo_neuron.cache import BMojoCache
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.model import BMojoForCausalLM

__all__ = ["BMojoCache", "BMojoConfig", "BMojoForCausalLM"]
__version__ = "0.1.0"

AutoConfig.register(BMojoConfig.model_type, BMojoConfig)
AutoModelForCausalLM.register(BMojoConfig, BMojoForCausalLM)
