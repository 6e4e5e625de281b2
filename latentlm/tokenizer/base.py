"""What a tokenizer is, and the plainest one: bytes."""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentlm.config.checking import several, shown, whole
from latentlm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_NO_UTF8 = "latentlm.no_utf8"


class Tokenizer(ABC):
    """Maps text to token ids 0..vocabulary-1, one of which ends a text."""

    name: str
    """How reports call it."""
    vocabulary: int
    """Number of ids, V."""
    end_of_text: int
    """The id that begins and ends every document."""
    bos: int | None = None
    """The id that begins a text instead, where a model from elsewhere was trained so."""

    leading_rule: Sequence[int] | None = None
    """What a model from elsewhere was fed before every prompt, nothing among it; None is `first`."""

    @property
    def leading(self) -> Sequence[int]:
        """The ids that are fed before a prompt."""
        return [self.first] if self.leading_rule is None else self.leading_rule

    @property
    def first(self) -> int:
        """The id that is fed before a text: what training fed there."""
        return self.end_of_text if self.bos is None else self.bos

    @property
    def special(self) -> frozenset[int]:
        """The ids that mark something and spell nothing."""
        return frozenset([self.end_of_text])

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what decides which tokens a text becomes; here, of name and size."""
        return hashlib.sha256(f"{self.name} {self.vocabulary} {self.end_of_text}".encode()).hexdigest()

    @abstractmethod
    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text, without end-of-text at either end. Strings are taken as UTF-8."""

    @abstractmethod
    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes that the tokens stand for; end-of-text stands for none. Raises ValueError on an id outside 0..V-1."""

    @abstractmethod
    def save(self, folder: Path) -> str:
        """Write what is needed to load it again into `folder`; returns what a card says under `tokenizer`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """`decode_bytes` as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> bytes:
        """The bytes that `tokens` add behind the tokens `before`; here, those that they stand for wherever they are. Raises
        ValueError as `decode_bytes`."""
        return self.decode_bytes(tokens)

    def pieces(self) -> list[bytes]:
        """The bytes that each id 0..V-1 stands for in the middle of a text; none for end-of-text and for a hole in the ids.

        Each is decoded behind a letter, since many tokenizers leave out the space that begins a text's first token."""
        letter = self.encode("a")
        return [self.decode_after(letter, [token]) for token in range(self.vocabulary)]

    def encode_prompt(self, prompt: str) -> list[int]:
        """`encode`, but a special token that the prompt spells is that token, where the tokenizer has such."""
        return self.encode(prompt)

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Token ids of many texts, each an array (n,) of the smallest of uint16 and uint32 that holds V."""
        return [np.asarray(self.encode(text), dtype=self.array_type) for text in texts]

    @property
    def array_type(self) -> type[np.unsignedinteger[Any]]:
        """The array type that `encode_all` gives."""
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32

    def _check(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens as plain numbers. Raises UserError, a ValueError, for what is none of this tokenizer's."""
        plain = []
        for token in several("tokens", tokens, of="numbers"):
            if type(token) is not int:
                token = whole("a token", token.item() if hasattr(token, "item") else token, least=None)
            plain.append(token)
            if not 0 <= token < self.vocabulary:
                raise UserError(
                    f"token {token} is not one of the {self.vocabulary} symbols (0 to {self.vocabulary - 1}) of the "
                    f'tokenizer "{self.name}"; decode with the tokenizer that the tokens were made with.'
                )
        return plain


def as_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text. What has no UTF-8 does not raise: U+DC80 to U+DCFF are the bytes that Python reads as them where a file
    or an argument is no UTF-8 (PEP 383); other lone surrogates keep their three bytes."""
    if not isinstance(text, str | bytes):
        raise UserError(f"a text must be str or bytes, not {shown(text)}.")
    return text if isinstance(text, bytes) else text.encode("utf-8", errors=_NO_UTF8)


def _bytes_of_surrogates(error: UnicodeError) -> tuple[bytes, int]:
    """For `codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    chars = error.object[error.start : error.end]
    each = (bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("utf-8", "surrogatepass") for c in chars)
    return b"".join(each), error.end


codecs.register_error(_NO_UTF8, _bytes_of_surrogates)


def tokens_before(whole: Sequence[int], part: Sequence[int]) -> list[int]:
    """What stands before `part` in `whole`: nothing where it is not in it."""
    places = range(len(whole) - len(part) + 1)
    return next((list(whole[:start]) for start in places if list(whole[start : start + len(part)]) == list(part)), [])


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes, 256 is end-of-text."""

    name = "bytes"
    vocabulary = 257
    end_of_text = 256

    def encode(self, text: str | bytes) -> list[int]:
        """One id per byte."""
        return list(as_bytes(text))

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The ids as bytes."""
        return bytes(token for token in self._check(tokens) if token != self.end_of_text)

    def encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """One id per byte, uint16."""
        return [np.frombuffer(text, dtype=np.uint8).astype(np.uint16) for text in texts]

    def save(self, folder: Path) -> str:
        """Nothing to write."""
        return "bytes"
