"""A byte-level BPE tokenizer in which chosen words are one token each.

The whole words are entries of the vocabulary like any other: with `ignore_merges` a stretch that
the splitter below cuts out and that the vocabulary holds becomes one token, without the chain of
merges that would lead to it. So ` Ada` never matches inside ` Adam`, and every text comes back
from its tokens byte for byte. With special tokens, which is the default, a text starts with bos.
"""

import json
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
NOTE, QUESTION, ANSWER = "Note:", "Question:", "Answer:"
MARKERS = (NOTE, QUESTION, ANSWER)

# GPT-2's splitter, with the markers kept together with their colon.
_SPLIT = (
    r"(?:Note|Question|Answer):"
    r"|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def train_tokenizer(
    texts: Iterable[str], whole_words: Iterable[str], vocab_size: int = 4096
) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same arguments give the same tokenizer.

    Args:
        texts: lines to learn the merges from.
        whole_words: words (letters only, no blank) of which ` word` shall be one token.
        vocab_size: number of tokens, among them 256 bytes, 3 special tokens and the markers.

    Raises:
        ValueError: a whole word is not made of letters, or all of them do not fit the vocabulary.
    """
    words = sorted(set(whole_words))
    for word in words:
        if not word.isalpha():
            raise ValueError(f"whole_words: expected words made of letters, got {word!r}")
    whole = {_as_bytes(text) for text in (*MARKERS, *(f" {word}" for word in words))}

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learnt = json.loads(bpe.to_str())["model"]

    size_without_merges = len(learnt["vocab"]) - len(learnt["merges"])
    if size_without_merges + len(whole) > vocab_size:
        raise ValueError(
            f"vocab_size: expected at least {size_without_merges + len(whole)} "
            f"for {len(whole)} whole words, got {vocab_size}; give fewer words or a larger size"
        )
    ids: dict[str, int] = {}
    for token in sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)[:size_without_merges]:
        ids[token] = len(ids)
    for token in sorted(whole):
        ids[token] = len(ids)
    merges = list(_fitting(learnt["merges"], ids, vocab_size))

    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _as_bytes(text: str) -> str:
    """`text` in the alphabet of byte-level BPE, which writes every byte as a printable letter."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        text
    )
    return "".join(piece for piece, _ in pieces)


def _fitting(
    merges: list[list[str]], ids: dict[str, int], vocab_size: int
) -> Iterator[tuple[str, str]]:
    """The first merges whose products fit; adds the products to `ids`."""
    for left, right in merges:
        product = left + right
        if product not in ids:
            if len(ids) == vocab_size:
                return
            ids[product] = len(ids)
        yield left, right
