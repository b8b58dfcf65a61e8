#!/usr/bin/env bash
# peft 0.21.2: a new DoRA adapter on a base in bfloat16 changes the base's answers.
#
# A new adapter is to change nothing: LoRA's second matrix is 0, and DoRA's magnitudes are the norms of the base's rows,
# which its forward pass divides by again. peft takes the magnitudes while the adapter still has the base's type, casts
# them to float32 with the rest of the adapter, and then takes the norms of every pass in float32. So the ratio of the two,
# which should be 1, keeps the rounding of bfloat16, and each row of each matrix is scaled by up to 0.4 %. Nothing is said.
# A DPO run that takes the base as its reference does not start at it. In float32 the adapter is the base, as is LoRA in
# both types.
#
# Seen on 2026-11-29, with Python 3.11 and torch 2.13.0:
#   float32   lora: off by 0.0, largest |magnitude / norm - 1|: -
#   float32   dora: off by 0.0, largest |magnitude / norm - 1|: 0.0000
#   bfloat16  lora: off by 0.0, largest |magnitude / norm - 1|: -
#   bfloat16  dora: off by more than 0, largest |magnitude / norm - 1|: 0.0038
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
ids, off, ratio = torch.arange(3, 15)[None], {}, {}
for dtype in (torch.float32, torch.bfloat16):
    for kind in ("lora", "dora"):
        torch.manual_seed(0)
        base = LlamaForCausalLM(config).to(dtype).eval()
        with torch.no_grad():
            before = base(input_ids=ids).logits
            adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", use_dora=kind == "dora")).eval()
            off[dtype, kind] = float((adapted(input_ids=ids).logits - before).abs().max())
            ratio[dtype, kind] = max(
                (float((part.lora_magnitude_vector["default"].weight / part.get_base_layer().weight.float().norm(dim=1) - 1)
                       .abs().max()) for part in adapted.modules() if "default" in getattr(part, "lora_magnitude_vector", {})),
                default=None,
            )
        said = "more than 0" if off[dtype, kind] > 1e-5 else "0.0"
        shown = "-" if ratio[dtype, kind] is None else f"{ratio[dtype, kind]:.4f}"
        print(f"{str(dtype)[6:]:9} {kind}: off by {said}, largest |magnitude / norm - 1|: {shown}")
lora_is_its_base = all(off[dtype, "lora"] == 0 for dtype in (torch.float32, torch.bfloat16))
ours = off[torch.float32, "dora"] < 1e-5 and ratio[torch.float32, "dora"] < 1e-6
theirs = off[torch.bfloat16, "dora"] > 1e-5 and ratio[torch.bfloat16, "dora"] > 1e-3
sys.exit(0 if lora_is_its_base and ours and theirs else 1)
PYTHON
