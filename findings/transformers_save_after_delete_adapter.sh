#!/usr/bin/env bash
# transformers 5.23.0 with peft 0.21.2: a model whose only adapter was deleted saves itself in a form that loads as a
# model of random numbers.
#
# `delete_adapter` undoes `add_adapter` as far as the model's answers go: they are the base's again, to the last bit, and
# the model says that it has no adapter. One would bet that it then saves as the model that it was. But the layers of peft
# stay around the base's own, so `save_pretrained`, which no longer asks peft for the names, writes every adapted matrix
# as `...base_layer.weight`. `from_pretrained` of that folder raises nothing: it fills those matrices with fresh random
# numbers, and a table of missing and unexpected names is all that tells.
#
# Seen on 2026-11-28, with Python 3.11 and torch 2.13.0:
#   after delete_adapter: off the base by 0.0, adapters on record: False
#   saved and loaded: off the base: True, matrices saved as base_layer: 14
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model, ids = LlamaForCausalLM(config).eval(), torch.arange(3, 15)[None]


def off(other, logits):
    with torch.no_grad():
        return float((other(input_ids=ids).logits - logits).abs().max())


with torch.no_grad():
    base = model(input_ids=ids).logits
model.add_adapter(LoraConfig(r=4, target_modules="all-linear"))
model.delete_adapter("default")
after = off(model, base)
print(f"after delete_adapter: off the base by {after}, adapters on record: {model._hf_peft_config_loaded}")
model.save_pretrained("saved")
with safe_open("saved/model.safetensors", "pt") as tensors:
    renamed = sum(".base_layer." in name for name in tensors.keys())
loaded = off(LlamaForCausalLM.from_pretrained("saved").eval(), base)
print(f"saved and loaded: off the base: {loaded > 0.01}, matrices saved as base_layer: {renamed}")
sys.exit(0 if after == 0 and loaded > 0.01 and renamed == 14 else 1)
PYTHON
