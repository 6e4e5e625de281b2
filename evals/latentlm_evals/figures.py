"""Figures as files: the same bytes for the same figure. A "$" in a name is a dollar, no formula, and no letter is missing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from latentlm.errors import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path | io.BytesIO, *, kind: str, dpi: float = 100) -> None:
    """Write a figure, `kind` "svg" or "png"."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text():
            text.set_text(shown(text.get_text()))
            text.set_parse_math(text.get_parse_math() and "$" not in text.get_text())
    with matplotlib.rc_context({"svg.hashsalt": "latentlm"}):
        figure.savefig(path, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)


def svg(figure: Figure) -> str:
    """The text of an SVG file."""
    made = io.BytesIO()
    save(figure, made, kind="svg")
    return made.getvalue().decode("utf-8")
