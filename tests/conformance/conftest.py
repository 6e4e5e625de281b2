"""Third-party parts, installed for real where this process finds them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from installing import install
from latentlm import plugins


@pytest.fixture(scope="module")
def testparts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution latentlm_testparts."""
    folder = install(tmp_path_factory.mktemp("site"), "latentlm_testparts")
    sys.path.insert(0, str(folder))
    plugins.reset()
    yield
    sys.path.remove(str(folder))
    plugins.reset()
