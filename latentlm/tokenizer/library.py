"""Tokenizers of the `tokenizers` library: any tokenizer.json, and byte-level BPE, which loses nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from latentlm.config.checking import shown, whole
from latentlm.config.reading import read_json
from latentlm.config.writing import write_text
from latentlm.errors import UserError, short
from latentlm.tokenizer.base import END_OF_TEXT, Tokenizer, as_bytes, tokens_before

FILE = "tokenizer.json"
COMPANION = "tokenizer_config.json"  # where the Hugging Face layout says which special token ends a text
_SYMBOL = 2**6  # bytes of a learned symbol, at least
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|end|>", "[EOS]", "<EOS>", "[SEP]")


class LibraryTokenizer(Tokenizer):
    """Any tokenizer.json of the `tokenizers` library that has an end-of-text token.

    `encode` reads bytes as UTF-8 and may normalise the text, as the file says; `decode` is the library's. Special tokens that a
    text spells out are encoded as ordinary text.
    """

    def __init__(self, backend: Any, *, name: str, end_of_text: str) -> None:
        self.name = name
        self._backend = backend
        self._end_of_text_name = end_of_text
        if end_of_text not in special_tokens(backend):  # else a text that spells it would hold it
            self._backend.add_special_tokens([end_of_text])
        self._backend.encode_special_tokens = True  # never make a special token out of text
        self._backend.no_truncation()
        self._backend.no_padding()
        self.end_of_text = backend.token_to_id(end_of_text)
        self.vocabulary = 1 + max(backend.get_vocab(with_added_tokens=True).values())  # ids may have holes

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids; bytes that are not UTF-8 are read as U+FFFD."""
        tokens = self._read(text)
        if self.end_of_text not in tokens:
            return tokens
        readable = as_bytes(text).decode("utf-8", errors="replace")
        # Some models (Unigram) find their special tokens in plain text too: break the name in two, encode piece by piece.
        name = self._end_of_text_name
        halves = re.split(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})", readable)
        return [token for piece in halves for token in self._ids(piece) if token != self.end_of_text]

    def encode_prompt(self, prompt: str) -> list[int]:
        """As the library reads it: special tokens that the prompt spells are found."""
        as_bytes(prompt)
        if not any(token.content in prompt for token in added_tokens(self._backend).values()):
            return self.encode(prompt)
        self._backend.encode_special_tokens = False
        try:
            return self._read(prompt)
        finally:
            self._backend.encode_special_tokens = True

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the library's tokenizer.json and the token that ends a text."""
        return hashlib.sha256(f"{self._end_of_text_name}\n{self._backend.to_str()}".encode()).hexdigest()

    @property
    def special(self) -> frozenset[int]:
        """Those that the file calls special."""
        return frozenset(number for number, token in added_tokens(self._backend).items() if token.special)

    def begin_as(self, folder: Path) -> None:
        """Begin prompts and texts as the tokenizer of this folder of transformers does. Prompts: with the special tokens that
        the file puts there (its post-processor). Whole texts and empty prompts: with the first of them, else the BOS that the
        companion file names, else end-of-text. Raises UserError for a BOS that is not there."""
        with _explained(self.name):
            whole = self._backend.encode("a", add_special_tokens=True).ids
        self.leading_rule = tokens_before(whole, self._ids("a"))
        named = named_token(self._backend, folder / COMPANION, "bos_token", "begins a text")
        self.bos = next(iter(self.leading_rule), None if named is None else self._backend.token_to_id(named))

    def _read(self, text: str | bytes) -> list[int]:
        """As the library reads it; bytes that are not UTF-8 as U+FFFD."""
        return self._ids(as_bytes(text).decode("utf-8", errors="replace"))

    def _ids(self, text: str) -> list[int]:
        with _explained(self.name):
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """`decode` as UTF-8."""
        return self.decode(tokens).encode("utf-8")

    def decode(self, tokens: Sequence[int]) -> str:
        """The library's decoding, without end-of-text."""
        kept = [int(token) for token in self._check(tokens) if token != self.end_of_text]
        with _explained(self.name):
            return str(self._backend.decode(kept, skip_special_tokens=False))

    def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> bytes:
        """The text of both less that of `before`: decoders leave out the blank that begins a text, and join the bytes of a
        letter that is cut between the two."""
        alone, both = self.decode(before), self.decode([*before, *tokens])
        if not both.startswith(alone):
            alone = both[: next(place for place, letter in enumerate(alone) if both[place : place + 1] != letter)]
        return both[len(alone) :].encode("utf-8")

    def save(self, folder: Path) -> str:
        """Writes tokenizer.json, and beside it which token ends a text where the file alone would not tell."""
        write_text(folder / FILE, self._backend.to_str(pretty=True))
        if end_of_text_name(self._backend, None) != self._end_of_text_name:
            write_text(folder / COMPANION, json.dumps({"eos_token": self._end_of_text_name}, indent=2) + "\n")
        return FILE


class BPETokenizer(LibraryTokenizer):
    """Byte-level BPE (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2).

    Every byte is a symbol of its own, so any bytes can be encoded and come back.
    """

    def __init__(self, backend: Any, *, name: str, end_of_text: str) -> None:
        super().__init__(backend, name=name, end_of_text=end_of_text)
        letters = byte_letters()
        self._byte_of_letter = {letter: byte for byte, letter in enumerate(letters)}
        self._token_of_byte = [backend.token_to_id(letter) for letter in letters]
        self._added = {token: str(added) for token, added in added_tokens(backend).items()}

    @staticmethod
    def check_vocabulary(vocabulary: int) -> int:
        """Symbols that can be learned. Raises UserError below 257, and where memory does not hold them."""
        from latentlm.config import memory  # imports torch

        vocabulary = whole("vocabulary", vocabulary, least=None)
        if vocabulary < 257:
            raise UserError(f"a BPE vocabulary of {vocabulary} cannot hold the 256 bytes and end-of-text; ask for 257 or more.")
        memory.check_count("vocabulary", vocabulary, each=_SYMBOL)
        return vocabulary

    @classmethod
    def train(cls, texts: Iterable[str | bytes], *, vocabulary: int) -> BPETokenizer:
        """Train on texts; the same texts in the same order give the same file. `vocabulary` counts the 256 bytes and
        end-of-text, which gets the last id; a small text may give fewer symbols. Raises UserError below 257."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise UserError(f"texts must be a list of texts, not {shown(texts)}.")
        vocabulary = cls.check_vocabulary(vocabulary)
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - 1, initial_alphabet=sorted(byte_letters()), show_progress=False, special_tokens=[]
        )
        backend.train_from_iterator((as_bytes(text).decode("utf-8", errors="replace") for text in texts), trainer=trainer)
        backend.add_special_tokens([END_OF_TEXT])
        tokenizer = cls(backend, name="", end_of_text=END_OF_TEXT)
        assert tokenizer.end_of_text == tokenizer.vocabulary - 1, "end-of-text is added after every learned symbol"
        tokenizer.name = f"bpe:{tokenizer.vocabulary}"
        return tokenizer

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids; a byte that is not UTF-8 becomes the symbol of that byte."""
        return self._read(text)

    def _read(self, text: str | bytes) -> list[int]:
        readable = as_bytes(text).decode("utf-8", errors="surrogateescape")
        if readable.isascii():
            return self._ids(readable)
        tokens: list[int] = []
        for piece in re.split("([\udc80-\udcff]+)", readable):  # the escaped bytes are U+DC80 to U+DCFF
            if piece and "\udc80" <= piece[0] <= "\udcff":
                tokens += [self._token_of_byte[ord(letter) - 0xDC00] for letter in piece]
            elif piece:
                tokens += self._ids(piece)
        return tokens

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes behind the tokens' letters."""
        parts: list[bytes] = []
        for token in self._check(tokens):
            if token == self.end_of_text:
                continue
            if token in self._added:  # added tokens are plain text, not byte letters
                parts.append(self._added[token].encode("utf-8"))
                continue
            symbol = self._backend.id_to_token(int(token)) or ""  # a hole in the ids stands for nothing
            try:
                parts.append(bytes(self._byte_of_letter[letter] for letter in symbol))
            except KeyError:  # no letters of bytes: plain text, as the library has it
                parts.append(symbol.encode("utf-8"))
        return b"".join(parts)

    def decode(self, tokens: Sequence[int]) -> str:
        """`decode_bytes` as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return Tokenizer.decode(self, tokens)

    def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> bytes:
        """The tokens' own bytes."""
        return self.decode_bytes(tokens)

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Token ids of many texts, those that are UTF-8 in one parallel batch."""
        readable = {}
        for index, text in enumerate(texts):
            try:
                readable[index] = text.decode("utf-8")
            except UnicodeDecodeError:
                continue
        with _explained(self.name):
            batch = self._backend.encode_batch_fast(list(readable.values()), add_special_tokens=False)
        ids = dict(zip(readable, (encoding.ids for encoding in batch), strict=True))
        found = (ids[index] if index in ids else self.encode(text) for index, text in enumerate(texts))
        return [np.asarray(tokens, dtype=self.array_type) for tokens in found]


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """A rule of the file that fails on a text: the library raises bare Exception, and no Exception where it panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"the tokenizer {name} fails on this text: {short(str(error))}. Mend its tokenizer.json.") from None


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level tokenizer.json: the 188 bytes that print in Latin-1 stand
    for themselves, the other 68, in order, are U+0100 and on (Radford et al. 2019)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x100 + 256 - len(printable)))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def added_tokens(backend: Any) -> dict[int, Any]:
    """{id: token} of the tokens added to the model's own vocabulary, special ones among them."""
    return dict(backend.get_added_tokens_decoder())


def special_tokens(backend: Any) -> set[str]:
    return {str(token.content) for token in added_tokens(backend).values() if token.special}


def end_of_text_name(backend: Any, companion: Path | None) -> str | None:
    """The token that ends a text: what the companion file says, else the first well-known name of a special token. Raises
    UserError where the companion names a token that is not there."""
    said = named_token(backend, companion, "eos_token", "ends a text")
    return said or next((name for name in _END_OF_TEXT_NAMES if name in special_tokens(backend)), None)


def named_token(backend: Any, companion: Path | None, key: str, role: str) -> str | None:
    """The token that the companion file names under a key; None where it names none. Raises UserError for one that is not
    there."""
    if companion is None or not companion.is_file():
        return None
    whole = read_json(companion)
    if not isinstance(whole, dict):
        raise UserError(f"{companion} should hold a mapping, not {type(whole).__name__}.")
    said = whole.get(key)
    said = said.get("content") if isinstance(said, dict) else said
    if said is not None and (not isinstance(said, str) or backend.token_to_id(said) is None):
        raise UserError(
            f'{companion} says that "{said}" {role} ({key}), but the tokenizer.json beside it has no such token. Put the files '
            "of one tokenizer there."
        )
    return said
