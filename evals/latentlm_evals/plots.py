"""The figures of a report, as SVG text: training curves, KL over positions, live units.

Colours follow the models' order, so a model has one colour throughout the page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from latentlm_evals.results import ModelResult

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
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
