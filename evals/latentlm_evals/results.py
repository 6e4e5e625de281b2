"""What a comparison measures of each model, as plain data: what the table, the page and `--json` are made from.

Units: bits per byte are nats of all targets, end-of-text included, over raw bytes times ln 2; KL is in bits per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from latentlm.cli.output import as_json
from latentlm.likelihood import Score
from latentlm_evals.bits_view import BitsView


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f}"


@dataclass(frozen=True)
class TaskResult:
    """One metric of one lm-eval task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    chance: float | None
    items: int
    filter: str = "none"
    """What lm-eval did to the answers before it judged them."""


@dataclass(frozen=True)
class TaskDifference:
    """How much better or worse `second` does than `first`, on the same items of a task or of all tasks of a group."""

    name: str
    """Of the task or group."""
    tasks: list[str]
    """What is pooled; empty for a single task."""
    metric: str
    filter: str
    first: str
    second: str
    items: int
    runs: tuple[int, int]
    """Runs (seeds) of each."""
    first_value: float
    second_value: float
    difference: float
    """Second minus first."""
    low: float
    """The 95% interval covers the choice of items and, where there are several runs of a model, of its seeds."""
    high: float
    items_error: float
    runs_error: float
    """The two standard errors in it."""
    higher_is_better: bool | None
    only_first: int | None
    """Items that the first alone gets right; None unless scores are 0 or 1 and each model has one run."""
    only_second: int | None
    mcnemar: float | None
    """Exact two-sided p."""
    unconverged: int = 0
    """Likelihoods behind it, of all runs of both models, that are not good to the tolerance."""

    @property
    def verdict(self) -> str:
        """What the interval says of the second model: better, worse, differs (where no direction is better), or nothing, as
        where likelihoods behind it are not good to the tolerance."""
        if self.unconverged or not (self.low > 0 or self.high < 0):
            return ""
        if self.higher_is_better is None:
            return "differs"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"


@dataclass
class TaskComparison:
    """Tasks compared item by item: every model with the first."""

    models: dict[str, list[str]]
    """Model -> its runs."""
    differences: list[TaskDifference]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Indented JSON."""
        return as_json(asdict(self))


@dataclass(frozen=True)
class Sample:
    """A prompt and its continuations; `latents` is "fresh" (a draw for each) or "shared" (one draw for all)."""

    prompt: str
    latents: str
    texts: list[str]


@dataclass
class LatentResult:
    """What one of several latents carries."""

    kl_bits_per_token: float
    live_units: int | None
    units: int
    mutual_information_bits: float | None
    cross_entropy_bits: dict[str, float]
    """Bits per token of first windows with this latent alone from the posterior, the prior, shuffled or constant."""


@dataclass
class ModelResult:
    """Everything measured of one model."""

    name: str
    decoder: str
    has_latents: bool
    parameters: int
    method: str
    """How the honest likelihood was made: "exact", or the estimator and its number of samples."""
    bits_per_byte: Estimate
    """Honest, on held-out documents; standard error clustered by document."""
    estimator_error: float
    """Standard error of the likelihood estimates themselves, in bits per byte; 0 where they are exact."""
    uncertainty: float
    """What the likelihood estimates are good to, in bits per byte: half of the interval of 95% of their error, and their
    bias."""
    converged: bool
    """The estimates are good to the comparison's tolerance."""
    effective_samples: float
    """Median over documents; near 1 means that the estimate leans on single samples."""
    difference: Estimate | None
    """bits_per_byte minus the baseline's, paired by document; None for the baseline itself."""
    elbo_bits_per_byte: float
    posterior_bits_per_byte: float
    """Cross-entropy under the posterior's z. The posterior has seen the targets: this is not a likelihood."""
    kl_bits_per_token: float
    live_units: int | None
    """Latent dimensions whose posterior mean moves with the text; None where the family has no means."""
    training: dict[str, Any] | None
    """tokens, tokens_per_second, steps, seconds; None for a model without a training record."""
    units: int = 0
    """Latent dimensions of a site; 0 without latents."""
    training_operations: float = 0.0
    """Floating-point operations of a training step, per token (accounting.py)."""
    mutual_information_bits: float | None = None
    """Between a site's latent and its text, bits per site."""
    cross_entropy_bits: dict[str, float] = field(default_factory=dict)
    """Bits per token of first windows under latents from the posterior, the prior, shuffled or constant ones."""
    latents: dict[str, LatentResult] = field(default_factory=dict)
    """Of each of several latents; live units and units above are then sums, and the mutual information is None."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """Name -> [[x, y], ...]; of one of several latents, "name/latent"."""
    tasks: list[TaskResult] = field(default_factory=list)
    tasks_verdict: str | None = None
    """How many likelihoods of the tasks have not converged; None where all have."""
    samples: list[Sample] = field(default_factory=list)
    bits: BitsView | None = None
    """A look at the first latent that is bits of a token; None where there is none."""
    scores: list[Score] = field(default_factory=list, repr=False)
    """The score of every held-out document, in order; kept in the JSON, so that other pairings can be made later."""
    sizes: list[int] = field(default_factory=list, repr=False)
    """Raw bytes of every document."""

    @property
    def good_to(self) -> str:
        """What the likelihood estimates are good to, in words."""
        return f"to {self.uncertainty:.4f}" if math.isfinite(self.uncertainty) else "unknown"

    @property
    def another_costs(self) -> float | None:
        """Bits per token by which another text's z is worse than the text's own; None where it is not measured."""
        found = self.cross_entropy_bits
        return found["shuffled"] - found["posterior"] if found else None


def budgets(models: Iterable[ModelResult]) -> dict[str, int]:
    """Training tokens of each model that says so."""
    known = {model.name: (model.training or {}).get("tokens") for model in models}
    return {name: int(tokens) for name, tokens in known.items() if isinstance(tokens, int | float)}


def differ_in_text(models: Iterable[ModelResult]) -> bool:
    """Whether some of the models say that they were trained on different amounts of text."""
    known = budgets(models).values()
    return bool(known) and max(known) > 1.01 * min(known)


def taxed(models: Sequence[ModelResult]) -> list[int]:
    """The places of the models whose difference from the first is the tax of a latent: the first has none, and they saw as much
    text."""
    first = models[0]
    return [
        place for place, model in enumerate(models)
        if place and not first.has_latents and model.has_latents and model.cross_entropy_bits
        and not differ_in_text([first, model])
    ]  # fmt: skip


@dataclass
class Comparison:
    """Models side by side, and how they were measured."""

    models: list[ModelResult]
    held_out: dict[str, Any]
    """documents, bytes, tokens, fingerprint of the text that was scored."""
    scored: str
    """Which part of the documents was scored, and in what windows."""
    task_scoring: str
    """How the lm-eval tasks were scored."""
    settings: dict[str, Any]
    command: str
    versions: dict[str, str]
    paired_tasks: TaskComparison | None = None
    """The tasks, item by item; None where no tasks were run or there is one model."""

    @property
    def warning(self) -> str | None:
        """What makes the difference between the models more than that of their parts."""
        if not differ_in_text(self.models):
            return None
        listed = ", ".join(f"{name} {tokens / 1e6:.1f}M" for name, tokens in budgets(self.models).items())
        return f"The models were trained on different amounts of text ({listed} tokens): part of every difference is that."

    @property
    def unconverged(self) -> str | None:
        """What a ranking that rests on likelihoods that have not converged must say."""
        found = [model.name for model in self.models if not model.converged]
        if not found:
            return None
        return (
            f"The likelihood of {', '.join(found)} has not converged: where models differ by less than it is good to, their "
            "order says nothing. More samples (--max-samples) bring it nearer."
        )

    def to_json(self) -> str:
        """Indented JSON."""
        return as_json(asdict(self))
