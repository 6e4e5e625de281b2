"""Granularity: where the sites of a latent begin.

    token       at every token                                 one latent per token
    chunk:n     at every n-th token of a document              one per n tokens
    document    at the first token of a document               one per document

and a plugin's own (`line`, `sentence`). A site conditions every position from its first to the one before the next site's, so
where sites begin says everything. A granularity reads token ids alone, so that a batch's sites are known before the model runs;
and it is causal, because in generation the tokens to come are not there yet.

In a forward pass sites are numbered (`assign_sites`); in generation each token is asked by itself (`begins_now`), with the few
tokens before it that the granularity says it needs (`lookback`).

Legend: B rows, T tokens, S sites.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from latentlm.config import Strict
from latentlm.errors import PluginError, UserError
from latentlm.interface.batches import PADDING

if TYPE_CHECKING:
    from latentlm.tokenizer import Tokenizer


class Granularity(ABC):
    """Where a latent's sites begin. Not a module: it has settings, no parameters.

    Example::

        class EveryThird(Granularity):
            Config = Strict

            def begins(self, tokens, positions, documents):
                return (tokens % 3 == 0) | (positions == 0)

        begins = EveryThird(Strict()).begins(torch.tensor([[7, 9, 4, 6]]), torch.arange(4)[None], torch.zeros(1, 4))
        assert begins.tolist() == [[True, True, False, True]]
    """

    Config: ClassVar[type[BaseModel]]
    lookback: int = 0
    """Earlier tokens that `begins` needs to see; in generation they are kept. May be set from the settings in `__init__`."""

    length: int | None = None
    """Tokens of a site, where all have as many."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool: a new site begins at this position, which consumes the token and predicts the next.

        tokens (B, T) long; positions (B, T) within the document, from 0; documents (B, T), -1 = padding, where the answer means
        nothing. Causal: position t may look at tokens t - lookback .. t of its own document. Position 0 always begins one."""

    @classmethod
    def fill(cls, settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """The settings with what depends on the tokenizer filled in, as plain data for recipe and card; done when a run is set
        up. Raises UserError where the tokenizer cannot serve."""
        return settings

    def sites_per_token(self, context: int) -> float:
        """Roughly how many sites a token of a full context has, for the count of operations. Where only the text knows: one in
        16, between the line of a few words and the sentence of many bytes, but no less than one a context."""
        return max(1 / 16, 1 / context)


class NoSettings(Strict):
    """No settings; unknown ones are refused."""


class ChunkConfig(Strict):
    """How long a chunk is."""

    length: int = Field(ge=1, description="tokens that share a latent, counted from the beginning of the document")


class Token(Granularity):
    """A site at every token."""

    Config = NoSettings
    length = 1

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool: everywhere."""
        return torch.ones_like(positions, dtype=torch.bool)

    def sites_per_token(self, context: int) -> float:
        """1."""
        return 1.0


class Chunk(Granularity):
    """A site at every n-th token of a document."""

    Config = ChunkConfig

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__(config)
        self.length = config.length

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool: where the position is a multiple of n."""
        return positions % self.config.length == 0

    def sites_per_token(self, context: int) -> float:
        """1/n."""
        return 1.0 / self.config.length


class Document(Granularity):
    """A site for a whole document."""

    Config = NoSettings

    def begins(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, T) bool: at position 0."""
        return positions == 0

    def sites_per_token(self, context: int) -> float:
        """One a context, which a document is taken to fill."""
        return 1.0 / context


BUILT_IN: dict[str, type[Granularity]] = {"token": Token, "chunk": Chunk, "document": Document}
"""The granularities of the frame, by the names that recipes use."""


# ------------------------------------------------------------------------------------------------------ where sites begin


def site_starts(granularity: Granularity, tokens: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
    """(B, T) bool: a real position at which a site begins. A document's first position is one whatever the granularity says:
    a site that went on from the document before would carry one text's latent into the next."""
    return (_asked(granularity, tokens, positions, documents) | (positions == 0)) & (documents >= 0)


def _asked(granularity: Granularity, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
    """`begins`. Raises PluginError, with the granularity's name, for whatever it raises: some tokens may be the first to."""
    try:
        return granularity.begins(tokens, positions, documents)
    except UserError:
        raise
    except Exception as error:
        called, kind = type(granularity).__name__, type(error).__name__
        raise PluginError(f"the granularity {called} cannot say where sites begin in this text: {kind}: {error}.") from error


def assign_sites(
    granularity: Granularity, tokens: Tensor, documents: Tensor, positions: Tensor, *, sites: int | None = None
) -> tuple[Tensor, int]:
    """site_of (B, T) long and S (counted, where `sites` does not say it), from tokens, documents (-1 = padding) and positions
    within the documents, all (B, T).

    Sites are numbered in each row from 0, in the order of the text. At padding the index is below S and means nothing."""
    rows, length = documents.shape
    if isinstance(granularity, Token):
        return torch.arange(length, device=documents.device).expand(rows, -1), length
    starts = site_starts(granularity, tokens, documents, positions)
    # A batch that continues a cached text may begin in the middle of a site, whose start it does not hold: hence the clamp.
    site_of = (starts.long().cumsum(dim=1) - 1).clamp(min=0).masked_fill(documents < 0, 0)
    return site_of, int(site_of.max()) + 1 if sites is None else sites


def count_sites(granularity: Granularity, tokens: Sequence[int]) -> int:
    """Sites of a document of these tokens."""
    if granularity.length is not None:
        return -(-len(tokens) // granularity.length)
    if not tokens:
        return 0
    row = torch.tensor([list(tokens)])
    positions = torch.arange(len(tokens))[None]
    return int(site_starts(granularity, row, torch.zeros_like(row), positions).sum())


def begins_now(granularity: Granularity, recent: Tensor, positions: Tensor) -> Tensor:
    """(B,) bool: whether the newest token of each row begins a site.

    recent (B, lookback + 1): the row's last tokens, oldest first, the newest at the end; what stands before the row's first
    token is not looked at. positions (B,): of the newest, within its document."""
    if granularity.lookback == 0:
        begins = _asked(granularity, recent, positions[:, None], torch.zeros_like(recent))[:, 0]
        return begins | (positions == 0)
    steps = torch.arange(-granularity.lookback, 1, device=recent.device)
    places = positions[:, None] + steps  # (B, lookback + 1), negative before the document
    documents = torch.zeros_like(places).masked_fill(places < 0, PADDING)
    return site_starts(granularity, recent, documents, places.clamp(min=0))[:, -1]


def recent_tokens(granularity: Granularity, tokens: Tensor, lengths: Tensor) -> Tensor:
    """(B, lookback): the last tokens of rows (B, T) that are filled up to `lengths` (B,), oldest first, for `begins_now` to go
    on from. Where a row is shorter, it begins with tokens that mean nothing."""
    steps = torch.arange(-granularity.lookback, 0, device=tokens.device)
    return tokens.gather(1, (lengths[:, None] + steps).clamp(min=0))


def from_previous(flags: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
    """Flags (B, T) bool of the token before, false where that is another document's, padding, or out of sight.

    What a granularity with a lookback is written in; twice looks two tokens back."""
    shifted = torch.zeros_like(flags)
    same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0) & (positions[:, 1:] > 0)
    shifted[:, 1:] = flags[:, :-1] & same
    return shifted


# -------------------------------------------------------------------------------------------------------- what users write


def parse_granularity(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, settings) of what a recipe says: "token", "chunk:8", {"name": "line", ...}. Raises UserError on what is neither.

    Whether the name is known and its settings are good is not asked here: the part's own Config does."""
    if isinstance(spec, Mapping):
        name, short = parse_granularity(spec.get("name", ""))
        return name, short | {str(key): value for key, value in spec.items() if key != "name"}
    if isinstance(spec, str) and (chunk := re.fullmatch(r"chunk:([1-9]\d*)", spec)):
        return "chunk", {"length": int(chunk.group(1))}
    if isinstance(spec, str) and re.fullmatch(r"[A-Za-z]\w*", spec):
        return spec, {}
    raise UserError(
        f'granularity "{spec}" is not one of "token", "chunk:n" (n tokens per latent), "document", the name of another, or a '
        "mapping with a name: {name: line, ...}."
    )
