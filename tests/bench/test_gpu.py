"""The script for a GPU goes through all of its stages on a CPU, where nothing but torch and transformers is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from making import group

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import estimates

ROOT = Path(__file__).parents[2]
MISSING = (
    "msgspec", "cyclopts", "docstring_parser", "rich_rst", "tomli_w", "plotly", "datasets", "multiprocess", "dill",
    "trl", "liger_kernel", "beartype", "jsonschema",
)  # fmt: skip  # on the machine that the script is for
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING!r}))
sys.path.insert(0, {str(ROOT / "bench")!r})
import gpu
sys.exit(gpu.main(sys.argv[1:]))
"""


def problems(numbers: object, place: str = "") -> list[str]:
    """Where an error stands in what was measured."""
    if not isinstance(numbers, dict):
        return []
    own = [f"{place}: {numbers['error']}"] if "error" in numbers else []
    return own + [line for name, inner in numbers.items() for line in problems(inner, f"{place}/{name}")]


def test_every_stage_goes_through_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", RUN, "--device", "cpu", "--toy", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == 0, ended.stderr[-3000:]
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert problems(measured) == []
    assert measured["msgspec's stand-in"] is True
    stages = {name: numbers for name, numbers in measured.items() if name[0].isdecimal()}
    assert [name[0] for name in stages] == [*"012345678"]
    assert all(numbers["gradients"][0] < 1e-5 for name, numbers in stages["1 attention"].items() if "blocks" in name)
    ours, padded = stages["8 large"]["hh"]["ours"], stages["8 large"]["hh"]["padded, 2 pairs a pass"]
    assert abs(ours["losses"][0] - 0.693147) < 1e-5  # ln 2: the policy is its reference
    assert abs(ours["losses"][1] - padded["losses"][1]) < 1e-5
    assert ours["losses"][1] != ours["losses"][0]


def test_a_stage_that_fails_or_finds_no_time_costs_only_itself(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "bench")!r})
import gpu
from pathlib import Path
report = gpu.Report(Path({str(tmp_path)!r}) / "gpu.json", 30.0, {{}})
report.stage("fails", 0.0, lambda: 1 / 0)
report.stage("no time", 31.0, lambda: 1 / 0)
report.stage("works", 0.0, lambda: {{"number": 1}})
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, env=env)
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert measured["fails"]["error"] == "ZeroDivisionError: division by zero"
    assert "seconds are left" in measured["no time"]["skipped"]
    assert measured["works"]["number"] == 1


def test_the_work_that_is_estimated_is_counted_by_hand() -> None:
    groups = [group([3, 4, 5], [6, 7], [6, 8, 9]), group([3, 4, 5, 6], [7], [8, 9])]
    # prompt 3 4 5, under it 6, under that 8; the second prompt is the first's path, under it 8. No last token is a row.
    assert estimates.shared(groups) == estimates.Work(tokens=5, scored=4, seen=1 + 2 + 3 + 4 + 5)
    assert estimates.padded(groups, 1) == estimates.Work(tokens=24, scored=8, seen=2 * 21 + 2 * 21)
    assert estimates.padded(groups, 2) == estimates.Work(tokens=24, scored=8, seen=4 * 21)
    flops = estimates.Work(tokens=1, scored=0, seen=0).flops((64, 128, 2, 2))
    assert flops == 6 * 2 * (64 * 128 + 2 * 64 * 128 + 128 * 64 + 3 * 64 * 128)  # q, k and v, o, the MLP
