"""Free memory, as the system and the control groups tell it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentlm.config import memory
from latentlm.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /proc and /sys/fs/cgroup under a temporary folder: 8 GiB available, no group."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def group(folder: Path, *, limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nslab 2\n")


def test_what_the_system_calls_available_is_free(system: Path) -> None:
    assert memory.available(CPU) == 8 * 2**30


def test_a_control_group_grants_less_and_its_page_cache_counts_as_free(system: Path) -> None:
    group(system / "groups", limit=str(4 * 2**30), used=3 * 2**30, cache=2**30)
    assert memory.available(CPU) == 2 * 2**30


def test_the_limit_of_an_outer_group_counts(system: Path) -> None:
    (system / "own").write_text("0::/outer/inner\n")
    group(system / "groups" / "outer", limit=str(2**30), used=0, cache=0)
    group(system / "groups" / "outer" / "inner", limit="max", used=0, cache=0)
    assert memory.available(CPU) == 2**30


def test_groups_of_version_1_are_read(system: Path) -> None:
    (system / "own").write_text("5:cpu:/\n4:memory:/box\n")
    folder = system / "groups" / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("3000")
    (folder / "memory.usage_in_bytes").write_text("1000")
    (folder / "memory.stat").write_text("cache 9\ntotal_inactive_file 500\n")
    assert memory.available(CPU) == 2500
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert memory.available(CPU) == 8 * 2**30


def test_where_nothing_tells_nothing_is_refused(system: Path) -> None:
    (system / "meminfo").unlink()
    (system / "own").unlink()
    assert memory.available(CPU) is None
    memory.check(10**18, CPU, what="a model")


def test_too_little_memory_is_told_in_numbers(system: Path) -> None:
    memory.check(8 * 2**30, CPU, what="a model")
    with pytest.raises(UserError, match=r"a model needs 16\.0 GiB on cpu, and 8\.0 GiB are free\. Choose"):
        memory.check(16 * 2**30, CPU, what="a model")


def test_this_machine_tells() -> None:
    free = memory.available(CPU)
    assert free is None or 0 < free < 2**50


def test_a_count_that_memory_does_not_hold_is_refused_before_anything_is_made(system: Path) -> None:
    memory.check_count("samples", 2**20, each=2**13)
    with pytest.raises(UserError, match=r"samples=1,048,577 takes 8\.0 GiB or more, and 8\.0 GiB are free"):
        memory.check_count("samples", 2**20 + 1, each=2**13)
    with pytest.raises(UserError, match="samples must be at most"):
        memory.check_count("samples", 10**30, each=1)


def test_what_no_processor_addresses_is_refused_where_nothing_tells(system: Path) -> None:
    (system / "meminfo").unlink()
    (system / "own").unlink()
    memory.check_count("samples", 2**30, each=2**13)
    with pytest.raises(UserError, match="more than can be addressed"):
        memory.check_count("samples", 2**40, each=2**13)


def test_the_limit_of_the_process_counts() -> None:
    lines = """
import resource, torch
from latentlm.config import memory
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
print(memory.available(torch.device("cpu")) < 2**36)
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**36))
print(memory.available(torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    below, none = done.stdout.split()
    assert below == "True"
    assert int(none) < 2**30
