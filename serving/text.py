"""From tokens to text, one token at a time, never splitting a character or a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows bytes that are not yet a character


class TextStream:
    """Text of a growing list of tokens, in deltas whose concatenation is the decoded whole.

    A token may hold part of a character, and a stop string may span tokens: what could still
    become either is held back until the next token, or `flush`, decides.

    Attributes:
        stopped: a stop string has come; the text ends just before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []  # from the last place where text was complete
        self._shown = 0  # leading tokens of these whose text is out; they are context for the rest
        self._held = ""  # decoded text that may be the start of a stop string
        self.stopped = False

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
            self._tokens = self._tokens[self._shown :]
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
