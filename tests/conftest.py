"""Fixtures that all tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("helpers", "cache_cases")

from helpers import QUICK  # noqa: E402


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A new directory in memory where there is one: fault tests call fsync thousands of times."""
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """fsync is for power cuts; hundreds of tiny files need not wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield
