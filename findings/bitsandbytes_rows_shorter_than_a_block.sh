#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU: a matrix with rows of 32 numbers does not come back from 4 bits as what was put in.
#
# `quantize_4bit` cuts the numbers of a matrix into blocks of 64, whatever its shape, and what it writes is right: decoded
# by hand, the numbers are 9 % off, as 4 bits are. `dequantize_4bit` takes each row to begin a block where rows are
# shorter than one, and gives other numbers, without a word. The same bytes come back right if their state says that they
# are one long row.
#
# Seen on 2026-11-28, with Python 3.11 and torch 2.13.0:
#   48 x 64: 0.09 off, by hand 0.09, as one row 0.09
#   48 x 32: 0.38 off (0.22 in another run), by hand 0.09, as one row 0.09
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.50.2
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from bitsandbytes import functional as F


def off(numbers, matrix):
    return float((numbers.view(matrix.shape) - matrix).norm() / matrix.norm())


torch.manual_seed(0)
seen = []
for width in (64, 32):
    matrix = torch.randn(48, width)
    packed, state = F.quantize_4bit(matrix, quant_type="nf4", compress_statistics=False)
    direct = off(F.dequantize_4bit(packed, state), matrix)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    by_hand = off(state.code[codes] * state.absmax.repeat_interleave(64), matrix)
    state.shape = torch.Size((1, matrix.numel()))
    as_one_row = off(F.dequantize_4bit(packed, state), matrix)
    print(f"48 x {width}: {direct:.2f} off, by hand {by_hand:.2f}, as one row {as_one_row:.2f}")
    seen.append((direct < 0.1, by_hand < 0.1, as_one_row < 0.1))
sys.exit(seen != [(True, True, True), (False, True, True)])
PYTHON
