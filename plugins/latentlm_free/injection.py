"""The Free Transformer's injection: R = table[z], added to the keys and values of one block (paper, sections 3.1 and 3.2).

R_t enters at position t, so it influences predictions from position t on. The defaults are our reading of what the paper leaves
open: the residual stream stays X, and the block's own norm acts on X + R for keys and values.

Legend: R latent rows, T tokens, S sites, D width, H bits.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from latentlm.config import Strict
from latentlm.errors import did_you_mean
from latentlm.interface import Bits, BlockCondition, Codes, Condition, Context, Injection, Latent, Operations, Shape
from latentlm_free.estimators import SAMPLES, TEMPERATURE, Estimator, EstimatorName
from latentlm_free.table import Kind, make_table


class TableInjectionConfig(Strict):
    """Where and how the table's rows enter."""

    block: int | None = Field(None, ge=0, description="injected block; default: L//2, the paper's block L/2+1 counted from 1")
    table: Kind = Field("full", description="full (the paper), full-additive (initialisation only), grouped, additive")
    group: int = Field(4, ge=1, description="bits per group of the grouped table")
    init_std: float | None = Field(
        1.0, gt=0, description="of the rows at the start: nn.Embedding's (the paper is silent); null: the backbone's"
    )
    norm: Literal["joint", "separate"] = Field("joint", description="keys and values from norm(X + R), or norm(X) + R")
    residual: bool = Field(False, description="R also enters the block's skip connection")
    estimator: EstimatorName = Field(
        "exact", description="gradient of the bit logits: exact (the paper), sampled, reinmax, straight_through, concrete"
    )
    samples: int | None = Field(
        None, ge=1, description=f"codes drawn for each token; sampled (default {SAMPLES}) and reinmax (default: sum over all)"
    )
    scores: Literal["float32", "bfloat16"] = Field(
        "float32", description="what the exact gradient's product with the table is computed in; bfloat16 is faster on a GPU"
    )
    temperature: float | None = Field(
        None, gt=0, allow_inf_nan=False, description=f"of the relaxed bits; concrete only (default {TEMPERATURE})"
    )

    @field_validator("estimator", mode="before")
    @classmethod
    def _known_estimator(cls, value: Any) -> Any:
        known = get_args(EstimatorName)
        if value not in known:
            raise ValueError(f'unknown estimator "{value}".{did_you_mean(str(value), known)} Available: {", ".join(known)}.')
        return value

    @model_validator(mode="after")
    def _only_with_its_estimator(self) -> Self:
        """A setting that would do nothing is a mistake."""
        for setting, takers in (("samples", ("sampled", "reinmax")), ("temperature", ("concrete",))):
            if getattr(self, setting) is not None and self.estimator not in takers:
                belongs = " or ".join(f'"{taker}"' for taker in takers)
                raise ValueError(f'{setting} belongs to estimator {belongs}, but estimator is "{self.estimator}": drop it.')
        if self.scores != "float32" and (self.estimator != "exact" or self.table == "additive"):
            raise ValueError("scores belongs to the exact gradient of a table of rows, which this is not: drop it.")
        return self


class TableInjection(Injection):
    """A row of a table for each site, added to the key/value stream of one block."""

    Config = TableInjectionConfig
    family = "bits"

    def __init__(self, config: TableInjectionConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = (shape.blocks // 2 if config.block is None else config.block,)
        entry = "kv" if config.norm == "joint" else "kv_normed"
        self.slots = (entry, "skip") if config.residual else (entry,)
        half = config.scores == "bfloat16"
        estimator = Estimator(config.estimator, config.samples, config.temperature or TEMPERATURE, half)
        self.table = make_table(config.table, shape.latent.dims, shape.width, group=config.group, estimator=estimator)

    def operations(self) -> Operations:
        """Of the scores <g, W_d> that the gradient takes, 2 for each entry of the table."""
        return Operations(training_per_site=2.0 * self.table.scored_rows * self.shape.width)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Rows of standard deviation 1 unless set otherwise: at the backbone's 0.06 to 0.08 a table of rows drawn alone stayed
        unused (docs/alive.md). Never zero, which would cut the encoder's gradient at the first step."""
        std = self.config.init_std or self.shape.backbone.init_std
        self.table.init_weights(std=std, generator=generator)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """R at every position: (R, T, D). Gradients reach the bit logits, or the logits of codes, where the latent carries its
        distribution. Codes take the exact straight-through gradient whatever the estimator: they are no product of bits."""
        q = latent.distribution
        rows: Tensor = self.table(latent.value, q.logits if isinstance(q, Bits) else None, latent.noise)  # (R, S, D)
        if isinstance(q, Codes):
            mean = q.log_probs.exp() @ self.table(q.support(), None).detach().to(q.log_probs)
            rows = rows + (mean - mean.detach()).to(rows)
        if self.shape.latent.granularity != "token":
            rows = context.at_positions(rows)  # (R, T, D)
        joint, residual = self.config.norm == "joint", self.config.residual
        entry = BlockCondition(
            kv=rows if joint else None, kv_normed=None if joint else rows, skip=rows if residual else None
        )
        return Condition({self.blocks[0]: entry})
