#!/usr/bin/env bash
# mlflow 3.17.2 gives an infinite metric back as a finite number.
#
# Whoever would have bet that a diverged loss reads back as infinite would have lost: into its default store (SQLite)
# mlflow writes the greatest double in place of an infinity, and reads that, so that `isfinite` says yes, and a mean over
# the run is a huge number. NaN comes back as NaN. A run that diverged is therefore not found by looking for infinities.
#
# Seen on 2026-11-27, with Python 3.11:
#   logged inf, read 1.7976931348623157e+308, finite True
#   logged -inf, read -1.7976931348623157e+308, finite True
#   logged nan, read nan, finite False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import math
import sys

from mlflow.tracking import MlflowClient

client = MlflowClient(tracking_uri="sqlite:///runs.db")
run_id = client.create_run(client.create_experiment("divergence")).info.run_id
values = (math.inf, -math.inf, math.nan)
for step, value in enumerate(values):
    client.log_metric(run_id, "loss", value, step=step)
read = [metric.value for metric in sorted(client.get_metric_history(run_id, "loss"), key=lambda m: m.step)]
for value, back in zip(values, read, strict=True):
    print(f"logged {value}, read {back}, finite {math.isfinite(back)}")
sys.exit([math.isfinite(back) for back in read] != [True, True, False])
PYTHON
