"""Freed memory is kept where that can be asked for, and nowhere against the user's will."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from disa_framework.runtime.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is about glibc")

LIMITS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")

# Prints how many pages the system hands out for the last of some equal tensors, larger than glibc keeps by itself. An
# aligned block is looked for with some room to spare, so that the first ones, up to nine, may not fit into each other's
# place.
PROGRAM = """
import resource, torch
from disa_framework.runtime.memory import keep_freed_memory
def pages():
    for _ in range(20):
        torch.ones(50 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages(), keep_freed_memory(), pages())
"""


def test_a_tensor_that_follows_equal_ones_takes_no_memory_from_the_system() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in LIMITS}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean, capture_output=True, text=True, check=True)
    given_back, asked, kept = done.stdout.split()
    assert asked == "True" and int(given_back) > 50 and int(kept) < int(given_back) / 10  # a page may have 2 MiB


@pytest.mark.parametrize("name", LIMITS)
def test_limits_and_allocators_of_the_user_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "65536")
    assert not keep_freed_memory()
