"""The options by which commands ask for likelihoods to a precision, and what they say before long work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latentlm.errors import UserError

if TYPE_CHECKING:
    from latentlm.likelihood.planning import Plan


def samples_of(text: str) -> int | Literal["auto"]:
    """What `--samples` says: a number or "auto". Raises UserError."""
    if text == "auto":
        return "auto"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f'--samples {text}: give a number from 1 on, or "auto" for as many as the tolerance takes.')


def seconds_text(seconds: float) -> str:
    """Roughly how long."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_lines(plan: Plan) -> dict[str, str]:
    """A plan as quantities and their values."""
    few, many = plan.samples
    least, most = (seconds_text(seconds) for seconds in plan.seconds)
    passes = f"{plan.requests * max(1, few):,}" + (f" to {plan.requests * many:,}" if many > few else "")
    return {
        "windows": f"{plan.requests:,}, {plan.tokens:,} target tokens",
        "samples of each": "none (exact)" if not many else f"{few}" if few == many else f"{few} to {many}",
        "passes of the upper blocks": passes,
        "time": least if least == most else f"{least} to {most}",
        "memory beside the weights": f"at most {plan.memory / 2**20:,.0f} MiB",
    }
