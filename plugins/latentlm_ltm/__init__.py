"""Latent thought vectors (Kong et al. 2025)."""

from __future__ import annotations

from latentlm.hookspecs import hookimpl

latentlm_contract = 1


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {}
