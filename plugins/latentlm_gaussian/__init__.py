"""One Gaussian vector per document (Bowman et al. 2016; Optimus, Li et al. 2020)."""

from __future__ import annotations

from latentlm.hookspecs import hookimpl

latentlm_contract = 1


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The parts of this plugin."""
    return {}
