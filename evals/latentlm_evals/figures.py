"""Figures as files: the same bytes for the same figure, and a "$" in a name is a dollar, no formula."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path | io.BytesIO, *, kind: str, dpi: float = 100) -> None:
    """Write a figure, `kind` "svg" or "png"."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)
    with matplotlib.rc_context({"svg.hashsalt": "latentlm"}):
        figure.savefig(path, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)


def svg(figure: Figure) -> str:
    """The text of an SVG file."""
    made = io.BytesIO()
    save(figure, made, kind="svg")
    return made.getvalue().decode("utf-8")
