"""Tokenizers as sentencepiece models come out of conversion: pieces that begin with a space's mark,
bytes for all else, and a decoder that drops the first space of a text.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *"abcdes</>!"]
WORDS = ["▁a", "▁b", "ab", "▁ab", "abc", "▁abc", "▁▁"]
PIECES = [*SPECIAL, *BYTES, *LETTERS, *WORDS]
USER = "<user>"  # special, and no piece of the model
TERM = "abcabcabc"  # added by somebody as a word of the text


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """kind: "unigram" (T5, XLM-R, Gemma) or "bpe" (Llama)."""
    if kind == "unigram":
        scores = [0.0] * 3 + [-20.0] * 256 + [-5.0] * len(LETTERS) + [-4.0] * len(WORDS)
        pieces = list(zip(PIECES, scores, strict=True))
        backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("ab", "c"), ("▁ab", "c")]
        model = models.BPE(
            vocab={piece: i for i, piece in enumerate(PIECES)},
            merges=[*merges, ("▁", "▁")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
        backend = Tokenizer(model)
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([*SPECIAL, USER])
    backend.add_tokens([AddedToken(TERM, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
