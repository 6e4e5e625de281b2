"""A plain decoder with a table of hashed n-grams: rows that the last few tokens look up, where the Free Transformer's table is
looked up by z. Its likelihood is exact.

It is a control: as many parameters as a latent's extras, in the same slot of the same block, without a latent.

    model: {decoder: {name: ngram, rows: 1836, orders: [2, 3]}}
"""

from __future__ import annotations

from latentlm.plugins import hookimpl
from latentlm_ngram.decoder import NgramDecoder

latentlm_contract = 2


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The decoder of this plugin."""
    return {"decoder": {"ngram": NgramDecoder}}
