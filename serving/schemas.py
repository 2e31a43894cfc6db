"""What goes over the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

# A name that starts with a dot could not stand in a URL: clients resolve "." and ".." away.
SESSION_ID = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"

SessionId = Annotated[
    str,
    Field(
        pattern=SESSION_ID,
        description="Your name for a conversation: 1 to 128 letters, digits, '.', '_' or '-', "
        "not starting with a dot. The first turn that uses it creates the session.",
        examples=["alice"],
    ),
]

StopString = Annotated[str, Field(min_length=1, max_length=256)]


class GenerateRequest(BaseModel):
    """A text to continue. Unknown fields and values of another JSON type are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "prompt": "Note: Jane is silver.\n\nQuestion: Jane\nAnswer:",
                    "session_id": "alice",
                    "max_new_tokens": 1,
                    "stream": True,
                }
            ],
            "oneOf": [{"required": ["prompt"]}, {"required": ["prompt_token_ids"]}],
        },
    )

    prompt: str | None = Field(
        None,
        min_length=1,
        description="New text only: what the session holds already is not sent again.",
        examples=["Note: Jane is silver.\n"],
    )
    prompt_token_ids: Annotated[list[int] | None, FailFast()] = Field(
        None,
        min_length=1,
        description="Instead of prompt: its token ids, taken as they are, with no token that opens "
        "a new text before them. The answer then holds token ids too. A model without tokenizer "
        "takes nothing else.",
        examples=[[17, 4, 256]],
    )
    session_id: SessionId | None = Field(
        None, description="The session to continue or begin. Without one nothing is kept."
    )
    max_new_tokens: int = Field(
        64, ge=1, description="Generate at most so many tokens. The server has a limit of its own."
    )
    stream: bool = Field(
        False, description="Answer with server-sent events as the text comes, not with one object."
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="0 always takes the most likely token; the next three fields then do nothing.",
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Draw among the fewest most likely tokens whose probabilities reach this sum.",
    )
    top_k: int | None = Field(
        None, ge=1, description="Draw among so many most likely tokens only, before top_p."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="Makes the draws repeatable: same seed, prompt and session, same text.",
    )
    stop: Annotated[list[StopString], FailFast()] = Field(
        default_factory=list,
        max_length=4,
        description="End before the first of these strings. The text leaves it out; the session "
        "keeps every token that was generated, those of the stop string included.",
        examples=[["\n\n"]],
    )
    parse_special_tokens: bool = Field(
        False,
        description="Names of special tokens in the prompt become these tokens, as a chat template "
        "needs it. Leave it out for text that somebody else wrote: then they are text.",
    )

    @property
    def in_ids(self) -> bool:
        """Whether prompt and answer are token ids."""
        return self.prompt_token_ids is not None


class SessionRef(BaseModel):
    """The session as this turn left it."""

    id: SessionId
    version: int = Field(description="Turns committed so far.", examples=[1])
    tokens: int = Field(description="Tokens that it holds now.", examples=[13])


class Usage(BaseModel):
    """What the turn cost. The three add up to the tokens that the session now holds."""

    prompt_tokens: int = Field(
        description="Tokens of this prompt (and the one that opens a new text): processed now.",
        examples=[12],
    )
    resumed_tokens: int = Field(
        description="Tokens that the session held before: not processed again.", examples=[0]
    )
    generated_tokens: int = Field(
        description="Tokens generated, an end-of-text token included.", examples=[1]
    )


TokenIds = Annotated[list[int] | None, Field(exclude_if=lambda ids: ids is None)]


class TextDelta(BaseModel):
    """An event of a stream."""

    text: str | None = Field(
        description="What follows the text so far; null if the model has no tokenizer."
    )
    token_ids: TokenIds = Field(
        None, description="The tokens that it follows from, if the prompt was token ids."
    )


class GenerateResponse(BaseModel):
    """The continuation of a prompt. A stream ends with an event of this shape."""

    text: str | None = Field(
        description="The generated text; empty at the end of a stream; null if the model has no "
        "tokenizer."
    )
    token_ids: TokenIds = Field(
        None,
        description="The generated tokens, an end-of-text token included, if the prompt was token "
        "ids; empty at the end of a stream.",
    )
    finish_reason: Literal["stop", "eos", "length"] = Field(
        description="A stop string came, the model ended its text, or max_new_tokens was reached."
    )
    usage: Usage
    session: SessionRef | None = Field(description="null for a request without session_id.")


class SessionResponse(BaseModel):
    """A session between two turns."""

    id: SessionId
    version: int = Field(description="Turns committed so far.", examples=[1])
    tokens: int = Field(description="Tokens that it holds.", examples=[13])
    bytes: int = Field(description="Size of its state.", examples=[756488])
    bytes_by_part: dict[str, int] = Field(
        description="Size of each tensor of its state.", examples=[{"layers.1.eidetic_k": 196608}]
    )
    created_at: datetime = Field(description="When its first turn was committed.")
    updated_at: datetime = Field(description="When its last turn was committed.")


class HealthResponse(BaseModel):
    """The server can take turns."""

    status: Literal["ok"] = "ok"
    turns: int = Field(description="Turns waiting or being played.", examples=[0])
    sessions: int = Field(description="Sessions kept.", examples=[1])
    tokenizer: bool = Field(
        description="Whether the model has one. Without, prompts are prompt_token_ids.",
        examples=[True],
    )


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs.", examples=["invalid_argument"])
    message: str = Field(
        description="For people.",
        examples=["max_new_tokens: expected greater than or equal to 1, got 0"],
    )
    param: str | None = Field(description="The wrong field.", examples=["max_new_tokens"])
    expected: str | None = Field(
        description="What it should have been.", examples=["greater than or equal to 1"]
    )
    got: str | None = Field(description="What came.", examples=["0"])


class ErrorResponse(BaseModel):
    """The shape of every answer that is not a success."""

    error: ErrorBody


def error_responses(**meanings: str) -> dict[int | str, dict[str, Any]]:
    """Documentation of the errors of a route: error_responses(_404="why") and so on."""
    named: dict[int | str, dict[str, Any]] = {
        int(status[1:]): {"model": ErrorResponse, "description": why}
        for status, why in meanings.items()
    }
    other = {"model": ErrorResponse, "description": "Any other error, in the same shape."}
    return {**named, "default": other}
