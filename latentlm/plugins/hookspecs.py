"""The two hooks of a latentlm plugin. A plugin is a module named by an entry point in the group `latentlm`.

    from latentlm.plugins.hookspecs import hookimpl

    latentlm_contract = 2

    @hookimpl
    def latentlm_parts():
        return {"encoder": {"mine": MyEncoder}}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pluggy

PROJECT = "latentlm"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def latentlm_parts() -> dict[str, dict[str, type]]:  # type: ignore[empty-body]
    """Parts by socket (decoder, encoder, prior, injection, kl_schedule, granularity) and name.

    Example::

        @hookimpl
        def latentlm_parts():
            return {"encoder": {"mine": MyEncoder}, "prior": {"mine": MyPrior}}
    """


@hookspec
def latentlm_cards() -> Iterable[Path]:  # type: ignore[empty-body]
    """Paths of model cards (YAML).

    Example::

        @hookimpl
        def latentlm_cards():
            return sorted((Path(__file__).parent / "cards").glob("*.yaml"))
    """
