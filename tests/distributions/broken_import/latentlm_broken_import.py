"""A plugin whose import fails."""

raise ImportError("libfancy.so.2 is not there")
