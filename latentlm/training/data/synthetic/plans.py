"""Plan first: texts that show a consequence before its cause.

A secret s is uniform; the text is y = f(s), fillers, then s. f is easy to compute and hard to invert, so a decoder that decides
token by token has to weigh, while it writes y, all secrets that would lead there, and to invert f when it writes s. A decoder
that decides s first, in a latent, has only to compute. p(text) = 1 / (number of secrets) where y = f(s), and 0 elsewhere.

    sums        digits base 4 on a ring; y_i = s_i + s_{i+1} + s_{i+3} mod 4, all of them or the first `shown`
    product     two numbers of two digits, the first not above the second; y their product, four digits
    automaton   a ring of bits; y the next state of rule 30
    subset      a subset of fixed weights, as bits; y the sum of its weights, in digits

Fillers stand first: tokens in which to decide. They are line breaks, so that a latent per line has its sites there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentlm.errors import UserError
from latentlm.training.data.synthetic.source import Source, uniform

FILLER = "\n"


@dataclass(frozen=True)
class Plan(Source):
    """y = f(s), then s."""

    length: int = 8
    """Symbols of a secret."""
    fillers: int = 0
    forwards: int = 0
    """1: s is written before y, the control that takes no plan."""

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if not 4 <= self.length <= 24 or not 0 <= self.fillers <= 4096:
            raise UserError(
                f"synthetic {name}: length={self.length}, fillers={self.fillers}: 4 to 24 symbols and 0 to 4096 fillers."
            )
        if self.forwards not in (0, 1):
            raise UserError(f"synthetic {name}: forwards={self.forwards}: 0 writes y first, 1 writes s first.")

    @property
    @abstractmethod
    def secrets(self) -> int:
        """How many there are."""

    @abstractmethod
    def secret(self, number: int) -> str:
        """The secret of that number."""

    @abstractmethod
    def consequence(self, secret: str) -> str:
        """f(s)."""

    @property
    def entropy(self) -> float:
        """That of the secret: all else follows."""
        return math.log(self.secrets)

    def text(self, secret: str) -> bytes:
        """What is written for a secret."""
        first, second = self.consequence(secret), secret
        if self.forwards:
            first, second = second, first
        return f"{FILLER * self.fillers}{first}={second}".encode()

    def texts(self, count: int, *, seed: int) -> list[bytes]:
        """As Source has it."""
        numbers = [int(value * self.secrets) for block in uniform(count, 1, seed=seed) for value in block[:, 0]]
        return [self.text(self.secret(number)) for number in numbers[:count]]

    def nats(self, texts: Sequence[bytes]) -> np.ndarray:
        """As Source has it."""
        return np.array([self.entropy if self._written(text) else math.inf for text in texts])

    def _written(self, text: bytes) -> bool:
        secret = text[self.fillers :].decode("latin-1").partition("=")[0 if self.forwards else 2]
        return self.is_secret(secret) and text == self.text(secret)

    @abstractmethod
    def is_secret(self, text: str) -> bool:
        """Whether it is one."""


@dataclass(frozen=True)
class Sums(Plan):
    """Digits base 4 on a ring. Of 8 digits the 8 sums tell the secret; the first `shown` of them leave 4^(8 - shown) that would
    do. Up to length - 3 sums can be met digit by digit, from the left; more take a plan."""

    shown: int = 0
    """Sums that are written, from the first; 0 = all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shown <= self.length:
            raise UserError(f"synthetic sums: shown={self.shown}: 1 to {self.length} sums can be shown, 0 shows all.")

    @property
    def secrets(self) -> int:
        """4 to the length."""
        return int(4**self.length)

    def secret(self, number: int) -> str:
        """Its digits."""
        return np.base_repr(number, 4).zfill(self.length)

    def is_secret(self, text: str) -> bool:
        """Digits 0 to 3, as many as there should be."""
        return len(text) == self.length and not set(text) - set("0123")

    def consequence(self, secret: str) -> str:
        """y_i = s_i + s_{i+1} + s_{i+3} mod 4."""
        digits = [int(digit) for digit in secret]
        count = len(digits)
        shown = range(self.shown or count)
        return "".join(str((digits[i] + digits[(i + 1) % count] + digits[(i + 3) % count]) % 4) for i in shown)


@dataclass(frozen=True)
class Product(Plan):
    """Two numbers from 10 to 99; `length` is 4 digits."""

    length: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length != 4:
            raise UserError(f"synthetic product: length={self.length}, but its secrets have 4 digits: leave it out.")

    @property
    def secrets(self) -> int:
        """Pairs of 90 numbers, in order."""
        return 90 * 91 // 2

    def secret(self, number: int) -> str:
        """The pair of that number: (10, 10), (10, 11), (11, 11), (10, 12), ..."""
        second = (math.isqrt(8 * number + 1) - 1) // 2
        return f"{10 + number - second * (second + 1) // 2}{10 + second}"

    def is_secret(self, text: str) -> bool:
        """Four ASCII digits, the first two not above the last two."""
        return len(text) == 4 and not set(text) - set("0123456789") and "10" <= text[:2] <= text[2:]

    def consequence(self, secret: str) -> str:
        """The product."""
        return f"{int(secret[:2]) * int(secret[2:]):04d}"


@dataclass(frozen=True)
class Automaton(Plan):
    """A ring of bits under rule 30: y_i = s_{i-1} xor (s_i or s_{i+1})."""

    length: int = 16

    @property
    def secrets(self) -> int:
        """2 to the length."""
        return int(2**self.length)

    def secret(self, number: int) -> str:
        """Its bits."""
        return f"{number:0{self.length}b}"

    def is_secret(self, text: str) -> bool:
        """Bits, as many as there should be."""
        return len(text) == self.length and not set(text) - set("01")

    def consequence(self, secret: str) -> str:
        """The next state."""
        bits = [int(bit) for bit in secret]
        return "".join(str(bits[i - 1] ^ (bits[i] | bits[(i + 1) % len(bits)])) for i in range(len(bits)))


@dataclass(frozen=True)
class Subset(Automaton):
    """A subset of weights 1000 + 37 i^2 mod 997, as bits, and the sum of its weights in five digits."""

    def consequence(self, secret: str) -> str:
        """The sum."""
        return f"{sum((1000 + 37 * i * i % 997) for i, bit in enumerate(secret) if bit == '1'):05d}"
