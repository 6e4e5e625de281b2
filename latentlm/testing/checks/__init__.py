"""The checks, a file for each kind; importing this registers them all."""

from importlib import import_module

_FILES = (
    "structure", "declarations", "granularities", "causality", "masks", "randomness", "several", "divergence", "gradients",
    "advancing", "decoding", "stepping", "likelihoods", "engine",
)  # fmt: skip

for _file in _FILES:
    import_module(f"{__name__}.{_file}")
