"""A look at bits (bits_view.py) as HTML: a text coloured by each bit, what flipping one does to the next token, and texts
written with it 0 and 1."""

from __future__ import annotations

import itertools
from html import escape

from latentlm_evals.bits_view import BitShown, BitsView, Flip

_LEVELS = 8
"""Shades on either side of one half."""
_ONE, _ZERO = "232,89,12", "76,110,245"


def section(name: str, view: BitsView) -> str:
    """The view of one model."""
    first = view.bits[0].number
    shown = "".join(f"<p>Bit {bit.number}</p><pre>{_coloured(view.pieces, bit)}</pre>" for bit in view.bits)
    flips = "".join(_flip(flip) for flip in view.flips)
    columns = "".join(
        f"<div><h3>bit {first} is {value} at every new token</h3>{''.join(_text(view.prompt, text) for text in texts)}</div>"
        for value, texts in enumerate(view.written)
    )
    return (
        f"<h3>{escape(name)}: the bits of {escape(view.latent)}</h3>"
        f'<p>A held-out text under its own encoder, which has read all of it: <span style="background:rgba({_ONE},.6)">the bit '
        f'is likely 1</span>, <span style="background:rgba({_ZERO},.6)">likely 0</span>, and where it says nothing there is no '
        f"colour.</p>{shown}<p>One bit flipped: bit {first} of a single token, all else as it was. The token that the decoder "
        "then expects next, where the two differ most:</p>"
        f'<div class="wide"><table><tr><th>text so far</th><th>bit {first} = 0</th><th>bit {first} = 1</th><th>it goes on</th>'
        f"</tr>{flips}</table></div>"
        f'<p>The same prompt and the same random numbers, with the bit set throughout:</p><div class="grid">{columns}</div>'
    )


def _coloured(pieces: list[str], bit: BitShown) -> str:
    """The text in spans of one shade each."""
    shades = [round((chance - 0.5) * 2 * _LEVELS) for chance in bit.chances]
    spans = []
    for shade, group in itertools.groupby(zip(shades, pieces, strict=True), key=lambda pair: pair[0]):
        text = escape("".join("¶ " if piece == "end of text" else piece for _, piece in group))
        colour = f"rgba({_ONE if shade > 0 else _ZERO},{0.75 * abs(shade) / _LEVELS:.2f})"
        spans.append(f'<span style="background:{colour}">{text}</span>' if shade else text)
    return "".join(spans)


def _flip(flip: Flip) -> str:
    cells = "".join(f"<td>{_likely(one)}</td>" for one in flip.under)
    before, after = (f"<td><code>{escape(_visible(text))}</code></td>" for text in (flip.before, flip.after))
    return f"<tr>{before}{cells}{after}</tr>"


def _likely(found: list[tuple[str, float]]) -> str:
    return ", ".join(f"<code>{escape(_visible(piece))}</code> {chance:.2f}" for piece, chance in found)


def _visible(text: str) -> str:
    """Line breaks and blanks that a table would swallow."""
    return text.replace("\n", "⏎").replace(" ", "␣")


def _text(prompt: str, text: str) -> str:
    return f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>"
