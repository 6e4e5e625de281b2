"""Layer-wise latents (DELLA, Hu et al. 2022)."""

from __future__ import annotations

from latentlm.hookspecs import hookimpl

latentlm_contract = 1


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {}
