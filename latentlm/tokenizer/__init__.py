"""Text to tokens and back: bytes, a byte-level BPE trained on your text, or any tokenizer.json.

    tokenizer = load_tokenizer("bytes")                                       # ids 0..255 are bytes, 256 ends a text
    tokenizer = BPETokenizer.train(texts, vocabulary=4096)                    # end-of-text is the last id
    tokenizer = load_tokenizer(tokenizer.save(folder), folder=folder)

Every document d_1..d_n is fed as inputs [end_of_text, d_1..d_n] with targets [d_1..d_n, end_of_text]: all n + 1 targets count
in bits per byte, over the raw bytes of the document. End-of-text is never made from a document's text: one that spells
"<|endoftext|>" is encoded letter by letter. A prompt may spell special tokens (prompts.py).

`ByteTokenizer` and `BPETokenizer` are lossless on any bytes, UTF-8 or not: `decode_bytes(encode(data)) == data`.
"""

from latentlm.tokenizer.base import END_OF_TEXT, ByteTokenizer, Tokenizer, as_bytes, tokens_before
from latentlm.tokenizer.library import COMPANION, FILE, BPETokenizer, LibraryTokenizer, byte_letters
from latentlm.tokenizer.loading import check_vocabulary, load_tokenizer
from latentlm.tokenizer.prompts import Pair, PromptReader

__all__ = [
    "COMPANION", "END_OF_TEXT", "FILE", "BPETokenizer", "ByteTokenizer", "LibraryTokenizer", "Pair", "PromptReader",
    "Tokenizer", "as_bytes", "byte_letters", "check_vocabulary", "load_tokenizer", "tokens_before",
]  # fmt: skip
