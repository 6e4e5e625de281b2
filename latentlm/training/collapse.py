"""Does the latent still carry anything? A watch over the held-out evaluations, which warns once.

A latent has collapsed when its posterior is the same whatever the text: the KL vanishes, or what KL is left tells nothing about
the text (posterior collapse; Bowman et al. 2016). One poor evaluation is no proof, least of all at the start: it takes three
in a row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

THRESHOLD_BITS = 0.01
"""Bits per site below which a latent carries nothing."""
_PATIENCE = 3


@dataclass
class CollapseWatch:
    """Counts poor evaluations; part of a checkpoint."""

    poor: int = 0
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
        if "kl_bits_per_site" not in report:
            return None
        bits, told = report["kl_bits_per_site"], report.get("information_bits_per_site")
        silent = bits < THRESHOLD_BITS or (report.get("live_bits") == 0 if told is None else told < THRESHOLD_BITS)
        self.poor = self.poor + 1 if silent else 0
        if self.warned or self.poor < _PATIENCE:
            return None
        self.warned = True
        about = "" if told is None else f", of which {told:.4f} tell about the text"
        return (
            f"the latent has collapsed: KL {bits:.4f} bits per site{about}, in {_PATIENCE} evaluations in a row. The decoder "
            "does without it so far. Allow it more bits (the KL schedule's allowance), warm the KL weight up, or give "
            "the encoder more gradient (the Free Transformer's additive table)."
        )
