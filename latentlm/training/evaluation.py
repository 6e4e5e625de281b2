"""The held-out evaluation during training: a quick bound on a few documents, and whether the latents are alive.

    bound = mean of -log p(x | z) + KL(q(z|x) || p(z)), one posterior sample per document, the same noise at every evaluation

Each document counts with its first window, whose text is read as in training. Live bits are the units whose posterior moves
with the data: the variance over all held-out sites of P(bit = 1), or of the mean for Gaussians, is above 0.01 (Burda et al.
2016, section 5.2). A small budget spread over many bits leaves each below that; what they tell about the text, unit by unit, is
the mutual information

    information = sum_h [entropy(mean of p_h) - mean of entropy(p_h)],   bits per site

which a posterior that is the same for every text has none of, whatever its KL. A latent has collapsed when its KL vanishes, or
what KL is left tells nothing about the text (posterior collapse; Bowman et al. 2016): a watch over the evaluations warns of it,
once. One poor evaluation is no proof, least of all at the start: it takes three in a row. For honest likelihoods of whole
documents see latentlm.likelihood.

Legend: B rows, T tokens, S sites, E event dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Annotated, Any, Self

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from latentlm.config import TrainConfig, checking
from latentlm.errors import UserError
from latentlm.interface import Batch, Bits, Codes, Granularity, LatentDecoder, LatentLoss, Loss, Noise, assign_sites, gathered
from latentlm.likelihood.bound import without_schedule
from latentlm.likelihood.results import Score
from latentlm.likelihood.summary import bits_per_byte
from latentlm.tokenizer import Tokenizer
from latentlm.training.data.packing import Window
from latentlm.training.data.prepared import HeldOut
from latentlm.training.parallel import Ranks
from latentlm.training.record.metrics import kl_keys, likelihood_keys
from latentlm.training.trainer import autocast, full_kl

LIVE_VARIANCE = 0.01
THRESHOLD_BITS = 0.01
"""Bits per site below which a latent carries nothing."""
_PATIENCE = 3
_CURVE_POINTS = 64


@dataclass(frozen=True)
class Excerpt:
    """What is scored of a held-out document."""

    window: Window
    bytes: int


def excerpts(documents: Sequence[HeldOut], tokenizer: Tokenizer, *, context: int, count: int) -> list[Excerpt]:
    """The first windows of the first `count` documents, with the raw bytes that their targets stand for."""
    chosen = []
    for document in documents[:count]:
        window = document.windows(context)[0]
        whole = len(window.targets) == len(document.tokens) + 1
        size = document.bytes if whole else len(tokenizer.decode_bytes(window.targets))
        chosen.append(Excerpt(window, size))
    return chosen


def evaluate(
    model: LatentDecoder, texts: Sequence[Excerpt], config: TrainConfig, ranks: Ranks | None = None
) -> dict[str, Any]:
    """The likelihood keys of record/metrics.py over the texts, with their error, and the state of the latents. Processes share
    the rows of each batch, as in training. Raises UserError for what is no model, no excerpts (see `excerpts`) and no
    settings."""
    ranks = ranks or Ranks()
    checking.model(model)
    if not isinstance(config, TrainConfig):
        raise UserError(f"evaluate takes a recipe's `train`, not {checking.shown(config)}.")
    for text in checking.several("texts", texts, of="excerpts"):
        if not isinstance(text, Excerpt):
            raise UserError(f"evaluate takes excerpts of texts, as `excerpts` gives them, not {checking.shown(text)}.")
    sums = _Sums()
    model.eval()
    with torch.no_grad(), without_schedule(model):
        for start in range(0, len(texts), config.batch):
            count = min(config.batch, len(texts) - start)
            numbers = [start + row for row in ranks.rows(count)]
            taken = numbers or [start]  # spread weights are gathered for every pass, for which every process is needed
            windows = [texts[number].window for number in taken]
            batch = Batch.of([window.inputs for window in windows], [window.targets for window in windows])
            noise = Noise.keyed(config.seed, [("held out", number) for number in taken])
            batch = batch.to(model.device)
            with autocast(model, config):
                loss = model.loss(batch, step=0, noise=noise)
            if numbers:
                sums.add(model, loss, batch, numbers)
    model.train()
    return reduce(_Sums.plus, gathered(sums)).report([text.bytes for text in texts])


@dataclass
class _Latent:
    """What is added up of one latent."""

    kl: float = 0.0
    means: list[Tensor] = field(default_factory=list)  # of the posterior, (sites, E) each
    bits: bool = False  # the means are those of bits
    sites: list[Tensor] = field(default_factory=list)  # [(first position, nats)], (2, sites) each

    def add(self, own: LatentLoss, kl: Tensor, first: Tensor | None) -> None:
        """Add a batch: kl (B, S) nats on the CPU, the first position of each site."""
        mask = own.site_mask.cpu()
        self.kl += float(kl.sum())
        means = own.posterior.expected()
        if means is not None:
            self.means.append(means.double().cpu()[mask])
            self.bits = isinstance(own.posterior, Bits | Codes)
        if first is not None:
            self.sites.append(torch.stack([first.double()[mask], kl[mask]]))

    def plus(self, other: _Latent) -> _Latent:
        """With what another process has."""
        return _Latent(self.kl + other.kl, self.means + other.means, self.bits or other.bits, self.sites + other.sites)

    def report(self) -> dict[str, Any]:
        """Its keys of a held-out line."""
        report: dict[str, Any] = {}
        if self.sites:
            report["kl_by_position"] = _curve(torch.cat(self.sites, dim=1))
            report["kl_bits_per_site"] = float(torch.cat(self.sites, dim=1)[1].mean()) / math.log(2)
        if self.means:
            means = torch.cat(self.means)
            report["live_bits"] = int((means.var(dim=0, unbiased=False) > LIVE_VARIANCE).sum())
            report["dimensions"] = means.shape[1]
            if self.bits:
                report["information_bits_per_site"] = _information(means)
        return report


@dataclass
class _Sums:
    """What is added up over the batches of an evaluation; nats, float64."""

    cross_entropy: dict[int, float] = field(default_factory=dict)  # by document
    kl: dict[int, float] = field(default_factory=dict)
    targets: dict[int, int] = field(default_factory=dict)
    latents: dict[str, _Latent] = field(default_factory=dict)
    normalised: bool = True

    def add(self, model: LatentDecoder, loss: Loss, batch: Batch, numbers: Sequence[int]) -> None:
        """Add a batch with one document per row, of these numbers."""
        self.cross_entropy |= zip(numbers, loss.reconstruction.double().sum(-1).tolist(), strict=True)
        self.targets |= zip(numbers, loss.target_mask.sum(-1).tolist(), strict=True)
        rows = torch.zeros(len(loss.target_mask), dtype=torch.float64)
        for name, own in loss.latents.items():
            kl = full_kl(own).cpu()
            rows = rows + kl.sum(-1)
            first = _first_positions(batch, model.latents[name].granularity, sites=kl.shape[1])
            self.latents.setdefault(name, _Latent()).add(own, kl, first)
            self.normalised = self.normalised and own.normalised
        self.kl |= zip(numbers, rows.tolist(), strict=True)

    def plus(self, other: _Sums) -> _Sums:
        """With those of another process."""
        both = [name for name in self.latents if name in other.latents]
        return _Sums(
            self.cross_entropy | other.cross_entropy,
            self.kl | other.kl,
            self.targets | other.targets,
            {**self.latents, **other.latents, **{name: self.latents[name].plus(other.latents[name]) for name in both}},
            self.normalised and other.normalised,
        )

    def report(self, sizes: list[int]) -> dict[str, Any]:
        """The keys of a held-out line; those of several latents lie under `latents`, by name, their live units are summed."""
        documents = range(len(sizes))
        scores = [
            Score(-(self.cross_entropy[number] + self.kl[number]), 0.0, 1.0, 1, self.targets[number], "elbo")
            for number in documents
        ]
        total = sum(self.targets.values())
        keys = likelihood_keys(
            sum(self.cross_entropy[number] for number in documents) / total,
            sum(self.kl[number] for number in documents) / total,
            bytes_per_target=sum(sizes) / total,
            normalised=self.normalised,
        )
        report: dict[str, Any] = {
            **keys,
            "standard_error": bits_per_byte(scores, sizes).standard_error,
            "documents": len(sizes),
            "bytes": sum(sizes),
        }
        each = {name: own.report() for name, own in self.latents.items()}
        if len(each) == 1:
            return report | next(iter(each.values()))
        if each:
            report["latents"] = {name: kl_keys(self.latents[name].kl / total) | own for name, own in each.items()}
            for key in ("live_bits", "dimensions"):
                report[key] = sum(own.get(key, 0) for own in each.values())
        return report


def _information(probabilities: Tensor) -> float:
    """Bits per site that the units tell about the text, each by itself, from (sites, H) probabilities of a one."""
    gain = _entropy(probabilities.mean(dim=0)) - _entropy(probabilities).mean(dim=0)
    return float(gain.clamp(min=0).sum()) / math.log(2)


def _entropy(probabilities: Tensor) -> Tensor:
    """Of a bit, nats."""
    return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)


def _first_positions(batch: Batch, granularity: Granularity, *, sites: int) -> Tensor | None:
    """(B, S) long, on the CPU: the first position of each site; None where the decoder numbers its sites in its own way."""
    site_of, count = assign_sites(granularity, batch.inputs.cpu(), batch.documents.cpu(), batch.positions.cpu())
    if count != sites:
        return None
    length = site_of.shape[1]
    index = torch.where(batch.documents.cpu() >= 0, batch.positions.cpu(), length)
    return torch.full((site_of.shape[0], sites), length).scatter_reduce(1, site_of, index, reduce="amin")


def _curve(sites: Tensor) -> list[list[float]]:
    """[[position, bits per site], ...] from (2, sites) of positions and nats, in at most 64 equal ranges of positions."""
    positions, nats = sites
    width = max(1, math.ceil((float(positions.max()) + 1) / _CURVE_POINTS))
    ranges = (positions // width).long()
    counts = torch.bincount(ranges).double()
    bits = torch.bincount(ranges, weights=nats) / counts / math.log(2)
    return [[float(place * width), float(bits[place])] for place in counts.nonzero().flatten().tolist()]


# ------------------------------------------------------------------------------------------------------------- collapse


@dataclass
class CollapseWatch:
    """Counts poor evaluations; part of a checkpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    poor: Annotated[int, Field(ge=0, le=2**62)] = 0
    """In a row."""
    warned: bool = False

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """From `state_dict`."""
        return cls(**state)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def check(self, report: dict[str, Any]) -> str | None:
        """Look at a held-out report; the warning when this evaluation makes a collapse certain, once per run."""
        each = report.get("latents", {"the latent": report})
        known = {name: own for name, own in each.items() if "kl_bits_per_site" in own}
        if not known:
            return None
        quiet = [name for name, own in known.items() if _silent(own)]
        silent = bool(quiet)
        self.poor = self.poor + 1 if silent else 0
        if self.warned or self.poor < _PATIENCE:
            return None
        self.warned = True
        name = quiet[0]
        bits, told = known[name]["kl_bits_per_site"], known[name].get("information_bits_per_site")
        about = "" if told is None else f", of which {told:.4f} tell about the text"
        return (
            f"{name} has collapsed: KL {bits:.4f} bits per site{about}, in {_PATIENCE} evaluations in a row. The decoder "
            "does without it so far. Let a Free Transformer's table begin with sums (table=full-additive, init_std=1.0), and "
            "allow more bits at first (free_bits: start_bits, hold, fall). In order, with what each did: docs/alive.md."
        )


def _silent(report: dict[str, Any]) -> bool:
    """Whether a latent's KL, or what of it tells about the text, is next to nothing."""
    bits, told = report["kl_bits_per_site"], report.get("information_bits_per_site")
    return bool(bits < THRESHOLD_BITS or (report.get("live_bits") == 0 if told is None else told < THRESHOLD_BITS))
