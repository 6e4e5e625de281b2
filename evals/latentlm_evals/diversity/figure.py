"""The experiment as a picture: for each latent decoder pass@k against k, and how many different right answers were found. The
names beside the bars are the legend of the lines, in the same colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentlm_evals.diversity.experiment import Cell, Found
from latentlm_evals.diversity.measures import at, counts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LATENT = {(True, "fresh"): "#1c3fb7", (True, "shared"): "#495057", (False, "fresh"): "#5c8dff", (False, "shared"): "#9aa3ad"}
"""By whether decoding is greedy, and by where z is from."""
_PLAIN = ("#e8590c", "#2b8a3e", "#9c36b5", "#c2255c")


def draw(found: Found) -> Figure:
    """A row of two panels for each latent decoder, or one row where there is none."""
    from matplotlib.figure import Figure

    models: list[str | None] = list(dict.fromkeys(cell.model for cell in found.cells if cell.latents))
    models = models or [None]
    rows = [_row_of(found, model) for model in models]
    figure = Figure(figsize=(11, 3.9 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False, width_ratios=[1.15, 1])
    for (left, right), model, cells in zip(panels, models, rows, strict=True):
        _pass(left, found, cells, model)
        _right_answers(right, found, cells)
    return figure


def _row_of(found: Found, model: str | None) -> list[Cell]:
    """The cells of a latent decoder, best explained first, then plain decoders at its pass@1 (or else as they are)."""
    own = [cell for cell in found.cells if cell.latents and cell.model == model]
    matching = [cell for cell in found.cells if cell.latents is None and cell.matched_to == model]
    return sorted(own, key=lambda cell: (cell.temperature > 0, cell.latents != "fresh")) + matching


def _label(found: Found, cell: Cell) -> str:
    how = "greedy" if cell.temperature == 0 else f"temperature {cell.temperature:.3g}"
    if cell.latents is None:
        reached = {one.model: one.match.reached for one in found.comparisons if one.baseline == cell.model}
        equal = {None: "", True: ", equal pass@1", False: ", nearest pass@1"}[reached.get(cell.matched_to or "")]
        return f"{cell.model}: {how}{equal}"
    words = {(True, "fresh"): " (latent-only)", (True, "shared"): " (one answer)"}
    return f"{how}, z {cell.latents}{words.get((cell.temperature == 0, cell.latents), '')}"


def _colour(found: Found, cell: Cell) -> str:
    if cell.latents is not None:
        return _LATENT[cell.temperature == 0, cell.latents]
    names = list(dict.fromkeys(other.model for other in found.cells if other.latents is None))
    if cell.temperature == 0 and cell.matched_to is None:
        return _LATENT[True, "shared"]
    return _PLAIN[names.index(cell.model) % len(_PLAIN)]


def _pass(axes: Axes, found: Found, cells: list[Cell], model: str | None) -> None:
    """pass@k against k, with intervals."""
    ks = counts_of(found.settings.samples)
    for cell in cells:
        own = [cell.measures[at(k)] for k in ks]
        colour, style = _colour(found, cell), "-" if cell.temperature == 0 else "--"
        axes.plot(ks, [one.value for one in own], style, marker="o", ms=4, lw=1.8, color=colour)
        axes.fill_between(ks, [one.low for one in own], [one.high for one in own], color=colour, alpha=0.1, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k, samples of a prompt", fontsize=9)
    axes.set_ylabel("pass@k: at least one of k is right", fontsize=9)
    axes.set_ylim(0, 1.03)
    axes.set_title(f"{model or 'without latents'} on {found.task}", loc="left", fontsize=10.5, fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _right_answers(axes: Axes, found: Found, cells: list[Cell]) -> None:
    """Different right answers among the samples, against what the data's own distribution gives."""
    for place, cell in enumerate(cells):
        one = cell.measures["valid"]
        axes.barh(place, one.value, height=0.6, color=_colour(found, cell))
        axes.plot([one.low, one.high], [place, place], color="#212529", lw=1.2)
    ceiling = found.data["valid"].value
    axes.axvline(ceiling, color="#495057", lw=1, ls=":")
    axes.text(ceiling, -0.62, "the data itself ", ha="right", va="bottom", fontsize=8, color="#495057")
    axes.set_yticks(range(len(cells)), [_label(found, cell) for cell in cells], fontsize=8.5)
    for label, cell in zip(axes.get_yticklabels(), cells, strict=True):
        label.set_color(_colour(found, cell))
        label.set_fontweight("bold")
    axes.set_ylim(len(cells) - 0.5, -0.9)
    axes.set_xlim(left=0)
    of = f"of {found.right_answers:.3g}"
    axes.set_title(f"different right answers ({of}) in {found.settings.samples} samples", loc="left", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
