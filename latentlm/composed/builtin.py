"""The parts that the frame brings itself. No plugin: they are there whatever is installed and whatever LATENTLM_PLUGINS allows.

    decoder        composed                 any number of latents, any combination of parts
    granularity    token, chunk, document   where the sites of a latent begin

It is found as a plugin is, by a hook, so that names, clashes and descriptions work alike; `latentlm plugins` marks it built in.
"""

from __future__ import annotations

from latentlm.composed.decoder import ComposedDecoder
from latentlm.interface import CONTRACT_VERSION
from latentlm.interface.granularity import BUILT_IN
from latentlm.plugins import hookimpl

latentlm_contract = CONTRACT_VERSION


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The frame's own parts."""
    return {"decoder": {"composed": ComposedDecoder}, "granularity": dict(BUILT_IN)}
