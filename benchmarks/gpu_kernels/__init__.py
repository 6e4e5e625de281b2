"""Kernels on a GPU: what the card can do, and the contenders for the mapper, attention, the head and keyed noise.

Run: ``python -m benchmarks.gpu_kernels [--json FILE] [--parts NAME ...]``.
"""
