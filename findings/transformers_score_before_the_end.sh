#!/usr/bin/env bash
# transformers 5.23.0: a sequence classifier whose pad token is its end token scores a text as if its end token were not
# there.
#
# A classifier made of a causal language model reads "the last token", and one would bet that this is the end token of a
# text that has one. It reads the rightmost token that is not the pad. Where pad and end are one token, as a tokenizer
# without a pad of its own is usually set up, the end token is passed over with the padding: a text that ended and the
# same text cut before its end get the same number, to the last bit. A reward model of this kind cannot see whether a
# response ended, so nothing it teaches makes a policy stop.
#
# Seen on 2026-11-28, with Python 3.11 and torch 2.13.0:
#   pad is the end token: ended and cut differ by 0.0
#   pad is another token: ended and cut differ: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

END, OTHER = 2, 3
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
    eos_token_id=END, bos_token_id=1,
)
torch.manual_seed(0)
model = LlamaForSequenceClassification(config).eval()
cut = torch.tensor([[1, 10, 11, 12, 13]])
ended = torch.cat([cut, torch.tensor([[END]])], 1)


def difference(pad):
    model.config.pad_token_id = pad
    with torch.no_grad():
        return float((model(input_ids=ended).logits - model(input_ids=cut).logits).abs().max())


same, apart = difference(END), difference(OTHER)
print(f"pad is the end token: ended and cut differ by {same}")
print(f"pad is another token: ended and cut differ: {apart > 0}")
sys.exit(not (same == 0 and apart > 0))
PYTHON
