"""What an operator can choose, each as an environment variable BMOJO_<NAME>."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bmojo_neuron.model import default_model_path
from serving.errors import invalid

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST_NAME = re.compile(r"\*|\[[0-9a-f:.]+\]|[^\s\[\]:@/*]+")


class Settings(BaseSettings):
    """Read from arguments first, then from the environment, then from these defaults.

    Raises:
        ValueError: a value has the wrong type or is out of range; its variable is named.
    """

    model_config = SettingsConfigDict(env_prefix="BMOJO_", frozen=True, protected_namespaces=())

    model_path: Path = Field(
        default_factory=default_model_path, description="Directory of the model and its tokenizer."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    allowed_hosts: Annotated[frozenset[str] | None, NoDecode] = Field(
        None,
        description="Names in Host and Origin that are answered, with commas between them, or *; "
        "unset: localhost, 127.0.0.1, [::1] and the host.",
    )
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
    max_body_bytes: int | None = Field(
        None,
        ge=1,
        description="Bytes of one request body; unset: 16 for each token of a prompt, 16 KiB more.",
    )
    body_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="Seconds that a request body may take to come."
    )
    prefill_piece: int = Field(
        512, ge=1, description="Prompt tokens between two looks at whether the client is gone."
    )
    compile_steps: bool = Field(
        False, description="Compile the model's steps to machine code before the first request."
    )

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            # The place of a value from the environment may be the variable's name already.
            name = str(first["loc"][0]).upper().removeprefix("BMOJO_")
            wrong = invalid({**first, "loc": (f"BMOJO_{name}",)})
            raise ValueError(str(wrong)) from None

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple | set | frozenset):
            return names
        found = frozenset(str(name).strip().lower() for name in names)
        for name in found:
            if not _HOST_NAME.fullmatch(name):
                expected = "names without scheme and port, IPv6 in brackets, or *"
                raise PydanticCustomError("names", expected)
        return found

    @property
    def listens_everywhere(self) -> bool:
        """Whether `host` stands for every address of the machine, so that it names none."""
        return self.host in ("", "0.0.0.0", "::")

    @property
    def hosts(self) -> frozenset[str]:
        """Names that are answered, in lower case, IPv6 addresses in brackets; "*" is any."""
        if self.allowed_hosts is not None:
            return self.allowed_hosts
        host = f"[{self.host}]" if ":" in self.host else self.host
        return _LOOPBACK if self.listens_everywhere else _LOOPBACK | {host.lower()}

    @property
    def body_limit(self) -> int:
        """Bytes of one request body: what the longest prompt and the other fields need."""
        # A token has some four letters of ASCII, or two or three that JSON may write in six bytes.
        if self.max_body_bytes is not None:
            return self.max_body_bytes
        return 16 * self.max_prompt_tokens + 16_384
