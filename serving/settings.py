"""What an operator can choose, each as an environment variable BMOJO_<NAME>."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bmojo_neuron.model import default_model_path


class Settings(BaseSettings):
    """Read from arguments first, then from the environment, then from these defaults.

    Raises:
        pydantic.ValidationError: a value has the wrong type or is out of range.
    """

    model_config = SettingsConfigDict(env_prefix="BMOJO_", frozen=True, protected_namespaces=())

    model_path: Path = Field(
        default_factory=default_model_path, description="Directory of the model and its tokenizer."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    shutdown_timeout: int = Field(
        10, ge=0, description="Seconds that running turns get to end after SIGTERM."
    )
    max_sessions: int = Field(
        1024, ge=1, description="Sessions kept; beyond it the longest unused idle one is dropped."
    )
    max_resident_sessions: int = Field(
        64,
        ge=0,
        description="Sessions kept as tensors; further ones are kept as bytes on the host.",
    )
    max_queued_turns: int = Field(
        32, ge=0, description="Turns that may wait for the model; more are answered 503."
    )
    max_prompt_tokens: int = Field(32_768, ge=1, description="Tokens of one prompt.")
    max_new_tokens: int = Field(
        4096, ge=64, description="Largest max_new_tokens of a request; no less than its default."
    )
    max_body_bytes: int = Field(1_000_000, ge=1, description="Bytes of one request body.")
    body_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="Seconds that a request body may take to come."
    )
    prefill_piece: int = Field(
        512, ge=1, description="Prompt tokens between two looks at whether the client is gone."
    )
    compile_steps: bool = Field(
        False, description="Compile the model's steps to machine code before the first request."
    )
