"""Is there room? Asked before gigabytes are allocated.

    memory.check(16 * 2**30, torch.device("cpu"), what='"free-8b" in bfloat16')
    memory.check_count("samples", samples, each=256, device=model.device)

For the CPU, what the system calls available, what the control groups of this process still grant and what its own limit leaves
(`ulimit -v`), whichever is least. A page cache counts as free, since the system gives it back. Where nothing tells (macOS,
Windows), nothing is refused but what no processor can address.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from latentlm.config.checking import whole
from latentlm.errors import UserError

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_PAGES = Path("/proc/self/statm")
ADDRESSABLE = 2**47
"""Bytes that a process can address on today's processors."""
_SMALL = 2**27  # bytes that are not worth a look
_UNLIMITED = 1 << 60  # version 1 says "no limit" with a number near 2^63


def available(device: torch.device) -> int | None:
    """Bytes free on a device; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = [*_system(), *_control_groups(), *_own_limit()]
    return min(known) if known else None


def check(needed: int, device: torch.device, *, what: str) -> None:
    """Raise UserError if `needed` bytes for `what` do not fit."""
    free = available(device)
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs {needed / 2**30:.1f} GiB on {device}, and {free / 2**30:.1f} GiB are free. "
            "Choose a smaller model, dtype=bfloat16, or a device with more memory."
        )


def check_count(name: str, count: int, *, each: int, device: torch.device | None = None) -> None:
    """Raise UserError if so many things, each of so many bytes or more, do not fit on a device (the CPU) together."""
    needed = whole(name, count) * each
    if needed <= _SMALL:
        return
    free = available(device or torch.device("cpu"))
    if needed > min(ADDRESSABLE, ADDRESSABLE if free is None else free):
        there = "more than can be addressed" if free is None else f"and {free / 2**30:.1f} GiB are free"
        raise UserError(f"{name}={count:,} takes {needed / 2**30:,.1f} GiB or more, {there}. Choose fewer.")


def _system() -> Iterator[int]:
    """What Linux calls available."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _own_limit() -> Iterator[int]:
    """What the limit on this process's addresses leaves."""
    if not _OWN_PAGES.exists():
        return
    import resource  # Windows has none

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield max(0, limit - int(_OWN_PAGES.read_text(encoding="ascii").split()[0]) * resource.getpagesize())


def _control_groups() -> Iterator[int]:
    """What each control group around this process still grants, its own first."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2
            yield from _around(_GROUPS, name, limit="memory.max", used="memory.current", cache="inactive_file")
        elif "memory" in controllers.split(","):
            names = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes", "cache": "total_inactive_file"}
            yield from _around(_GROUPS / "memory", name, **names)


def _around(root: Path, name: str, *, limit: str, used: str, cache: str) -> Iterator[int]:
    """Limit minus use, page cache given back, for a group and those around it. A container sees its own group as the root."""
    inner = root / name.lstrip("/")
    for folder in (inner, *inner.parents):
        if folder.is_relative_to(root):
            try:
                granted = (folder / limit).read_text(encoding="ascii").strip()
                taken = int((folder / used).read_text(encoding="ascii"))
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            except (OSError, ValueError):
                continue
            if granted != "max" and int(granted) < _UNLIMITED:
                yield max(0, int(granted) - taken + int(statistics.get(cache, 0)))
