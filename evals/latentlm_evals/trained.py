"""How a model was trained: what its metrics say, and where these are gone, its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentlm.interface import LatentDecoder
from latentlm.training.record import METRICS, whole_lines


def training_facts(folder: Path, model: LatentDecoder) -> dict[str, Any] | None:
    """Speed and length of the training: the median over the log lines. None where nothing is known."""
    lines = [line for line in whole_lines(folder / METRICS) if line.get("split", "train") == "train"]
    if not lines:
        return _recorded(model.card.training) if model.card else None
    speeds = sorted(line["tokens_per_second"] for line in lines)
    last = lines[-1]
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["elapsed"],
        "tokens_per_second": speeds[len(speeds) // 2],
    }


def _recorded(facts: dict[str, Any]) -> dict[str, Any] | None:
    """What a card says of its training, with the speed where it says enough; None where it says nothing."""
    tokens, seconds = facts.get("tokens"), facts.get("seconds")
    if isinstance(tokens, int | float) and isinstance(seconds, int | float) and seconds > 0:
        return {**facts, "tokens_per_second": tokens / seconds}
    return facts or None


def training_curves(folder: Path) -> dict[str, list[list[float]]]:
    """The curves of a run: bits per byte of the training cross-entropy, and what each evaluation found. A line without a bound
    is no point of one."""
    curves: dict[str, list[list[float]]] = {"cross_entropy": [], "bound": [], "live_bits": []}
    for line in whole_lines(folder / METRICS):
        step, bound, bits = line["step"], line["bound"], line["bits_per_byte"]
        if line.get("split", "train") == "train":
            if bits is not None and line["cross_entropy"] is not None and (bound or 0) > 0:
                # the line has the bound in both units, so their ratio converts the cross-entropy
                curves["cross_entropy"].append([step, line["cross_entropy"] * bits / bound])
            continue
        if bits is not None:
            curves["bound"].append([step, bits])
        if line.get("live_bits") is not None:
            curves["live_bits"].append([step, line["live_bits"]])
    return curves
