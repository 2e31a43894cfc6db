"""From text to tokens, where text is text, and back, one token at a time, never splitting a
character or a stop string.
"""

import json
import secrets
from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows bytes that are not yet a character
_CONTEXT = 16  # tokens before a text that are decoded with it; more where these show nothing


class PromptEncoder:
    """Token ids of texts in which nothing is a control token, unless it is asked for.

    transformers' own `split_special_tokens` does not look for special tokens, but models of whole
    pieces (Unigram, WordLevel, BPE with ignore_merges) then find them in their vocabulary; and it
    is a switch on an object that threads share. Here a second tokenizer knows them by names that no
    text can hold. Added tokens that are not special are text, and stay whole.

    Raises:
        ValueError: the tokenizer is not one of the tokenizers library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(
                "tokenizer: expected one of the tokenizers library (with a tokenizer.json), got "
                f"{type(tokenizer).__name__}; convert it with transformers first"
            )
        self._tokenizer, self._plain = tokenizer, _without_special_tokens(tokenizer)

    def __call__(
        self, text: str, *, parse_special_tokens: bool, add_special_tokens: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        Args:
            parse_special_tokens: the names of special tokens stand for these tokens, as in a chat
                template.
            add_special_tokens: put those around it that the tokenizer puts around a text.
        """
        if not parse_special_tokens:
            return list(self._plain.encode(text, add_special_tokens=add_special_tokens).ids)
        ids: list[int] = self._tokenizer.encode(
            text,
            add_special_tokens=add_special_tokens,
            split_special_tokens=False,
            verbose=False,
        )
        return ids


def _without_special_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy with the same ids, in which special tokens have names that nobody can write."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = parts["model"], parts["added_tokens"]
    special = {token["content"] for token in added if token["special"]}
    secret = secrets.token_hex(16)

    def rename(name: str) -> str:
        return secret + name if name in special else name

    for token in added:
        token["content"] = rename(token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(name): i for name, i in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(name), score] for name, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if special.isdisjoint({*pair, "".join(pair)})
        ]
    return Tokenizer.from_str(json.dumps(parts | {"truncation": None, "padding": None}))


class TextStream:
    """Text of a growing list of tokens, in deltas whose concatenation is what these add to the
    decoded text before them.

    A token may hold part of a character, and a stop string may span tokens: what could still
    become either is held back until the next token, or `flush`, decides. A character that is out
    stands, even if bytes that follow make a decoder call all bytes before them broken.

    Attributes:
        stopped: a stop string has come; the text ends just before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []  # from a place where text was complete
        self._shown = 0  # leading tokens of these whose text is out; they are context for the rest
        self._held = ""  # decoded text that may be the start of a stop string
        self.stopped = False

    def start(self, before: Sequence[int]) -> None:
        """Say once, before the first token, which tokens come before it: many decoders drop a space
        at the start of all text, and only there.
        """
        size, seen = _CONTEXT, ""
        while not seen or seen.startswith(_INCOMPLETE):  # cut within a character
            self._tokens = list(before[-size:])
            seen = self._decode(self._tokens)
            if size >= len(before):
                break
            size *= 8
        self._shown = len(self._tokens)

    def push(self, token: int) -> str:
        """The text that `token` makes certain, possibly none."""
        self._tokens.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """The rest, once no token follows; a character cut short comes out as U+FFFD."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._decode(self._tokens)
        if final or not text.endswith(_INCOMPLETE):
            self._held += text[len(self._decode(self._tokens[: self._shown])) :]
            fresh = self._tokens[self._shown :]
            if self._decode(fresh):  # else no context: what follows would stand at the start
                self._tokens = fresh
            self._shown = len(self._tokens)
        ends = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if ends:
            self.stopped, keep = True, min(ends)
        else:
            keep = len(self._held) - (0 if final else self._stop_prefix())
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def _stop_prefix(self) -> int:
        """Characters at the end of the held text that a stop string could start with."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for size in range(longest, 0, -1):
            if any(word.startswith(self._held[-size:]) for word in self._stop):
                return size
        return 0

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
