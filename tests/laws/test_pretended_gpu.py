"""What tests/gpu asks of a GPU, asked of one that is pretended: a device named cuda in the host's memory.

It shows tensors of two devices in one call, memory that nobody has written, and waits; it cannot show what kernels do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
Asked = Callable[[Sequence[str]], str]


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> Asked:
    """Runs tests of tests/gpu in a process that has the device, and returns what pytest says."""
    if not sys.platform.startswith("linux") or shutil.which("g++") is None:
        pytest.skip("the pretended GPU is built by g++ on Linux")

    def run(words: Sequence[str]) -> str:
        command = [sys.executable, "-m", "pytest", "-p", "pretended.gpu", "-p", "no:cacheprovider", "-m", "gpu", *words]
        path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
        place = str(request.config.cache.mkdir("pretended"))  # type: ignore[union-attr]
        own = {"PYTHONPATH": path, "PRETENDED": place, "TRITON_INTERPRET": "1"}
        ended = subprocess.run(command, cwd=TESTS.parent, env=os.environ | own, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
        return ended.stdout

    return run


def test_whole_runs(asked: Asked) -> None:
    assert "12 passed" in asked(["tests/gpu/test_runs.py"])


def test_a_pack_waits_for_the_device_once(asked: Asked) -> None:
    assert "1 passed" in asked(["tests/gpu/test_device.py", "-k", "waits"])


def test_ranks_with_a_gpu_each(asked: Asked) -> None:
    assert "3 passed" in asked(["tests/pretended"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_that_is_asked_of_a_gpu(asked: Asked) -> None:
    assert "passed" in asked(["tests/gpu"])
