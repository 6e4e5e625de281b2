"""The `latentlm` command. This module imports nothing that takes time: what Ctrl-C does meanwhile, and what the standard
streams are, is settled before `latentlm.cli.commands`, the command line, is imported with its libraries.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the `latentlm` command."""
    from latentlm.cli import _interrupts

    _interrupts.begin()
    try:
        from latentlm.cli import _streams

        _streams.prepare()
        from latentlm.cli.commands import run

        run()
    finally:
        _interrupts.end()
