"""Controlled studies: arms by seeds from one file, trained side by side, measured alike, a JSON line for each finished run."""
