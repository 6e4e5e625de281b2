"""The figures of a report, as SVG text: training curves, KL over positions, live units; differences of tasks.

Colours follow the models' order, so a model has one colour throughout the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentlm_evals.figures import svg
from latentlm_evals.results import ModelResult, TaskComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4c6ef5", "#e8590c", "#2b8a3e", "#9c36b5", "#0b7285", "#c2255c", "#846358", "#e6a700", "#495057", "#66a80f")

_STYLES = ("-", "--", ":", "-.")

_PANELS = (
    ("cross_entropy", "cross-entropy while training", "step", "bits per byte", "under the posterior's z: not a likelihood"),
    ("bound", "held-out bound", "step", "bits per byte", "cross-entropy + full KL (exact for a plain decoder)"),
    ("kl_by_site", "KL over latent sites", "latent site", "bits per site", "held-out, first windows, at the end"),
    ("live_bits", "live units", "step", "units", "variance of the posterior mean over held-out text above 0.01"),
)


def curves(models: Sequence[ModelResult]) -> str:
    """The four panels as one SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for axes, (name, title, x_label, y_label, note) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for index, model in enumerate(models):
            found = {key: points for key, points in model.curves.items() if key.partition("/")[0] == name and points}
            for number, (key, points) in enumerate(found.items()):
                x, y = zip(*points, strict=True)
                marker, style = "o" if len(points) < 30 else "", _STYLES[number % len(_STYLES)]
                label = f"{model.name} {key.partition('/')[2]}".strip()  # of several latents, each has a line
                axes.plot(x, y, color=COLOURS[index % len(COLOURS)], ls=style, label=label, marker=marker, ms=3, lw=1.4)
        axes.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
        axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=8.5, color="#666")
        axes.set_xlabel(x_label, fontsize=9)
        axes.set_ylabel(y_label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if name in ("kl_by_site", "live_bits"):
            axes.set_ylim(bottom=0.0)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9 if len(models) < 5 else 7.5, ncols=1 if len(models) < 5 else 2)
        else:
            absent = "no latents" if name == "kl_by_site" else "no record of training"
            axes.text(0.5, 0.5, absent, transform=axes.transAxes, ha="center", color="#999")
    return _svg(figure)


def differences(found: TaskComparison) -> str:
    """Every paired difference with its interval, a panel per metric (their units differ), tasks from above."""
    from matplotlib.figure import Figure

    rows: dict[tuple[str, str], list[str]] = {}
    for one in found.differences:
        names = rows.setdefault((one.metric, one.filter), [])
        names.extend([one.name] if one.name not in names else [])
    metrics = list(rows)
    heights = [0.9 + 0.32 * len(rows[metric]) for metric in metrics]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=heights)[:, 0]
    others = list(found.models)[1:]
    for axes, metric in zip(panels, metrics, strict=True):
        for one in found.differences:
            if (one.metric, one.filter) != metric:
                continue
            number = others.index(one.second)
            y = rows[metric].index(one.name) + 0.5 * ((number + 0.5) / len(others) - 0.5)  # models side by side in a row
            axes.plot([one.low, one.high], [y, y], color=COLOURS[(number + 1) % len(COLOURS)], lw=1.6)
            label = one.second if one.name == rows[metric][0] else None
            marker = "D" if one.tasks else "o"
            axes.plot(one.difference, y, marker, ms=5, color=COLOURS[(number + 1) % len(COLOURS)], label=label)
        axes.axvline(0.0, color="#999", lw=0.8)
        axes.set_yticks(range(len(rows[metric])), rows[metric], fontsize=8)
        axes.set_ylim(len(rows[metric]) - 0.4, -0.6)
        named = ", ".join(part for part in metric if part != "none")
        axes.set_title(f"{named}: difference from {next(iter(found.models))}", loc="left", fontsize=10, fontweight="bold")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """The picture as a part of a page."""
    made = svg(figure)
    return made[made.index("<svg") :]
