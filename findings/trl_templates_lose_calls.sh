#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0: twelve of the chat templates that TRL carries render a turn that calls a tool as an
# empty turn, without an error.
#
# One would bet that a template either writes `tool_calls` or refuses them. These twelve pass over the key: the turn in
# which the assistant calls a tool has a header and an end, and nothing between them, so a model that is trained on such
# rows learns to say nothing where it should call. LFM2's is the hardest to notice, because it does write the list of
# tools into the system's turn; the others write neither. Its successors (lfm2_v2, lfm2_2_5) write both.
#
# Seen on 2026-11-28, with Python 3.11:
#   lost without an error: deepseek_r1_distill deepseek_r1_distill_training lfm2 lfm2_training llama3 llama3_training
#     phi3 phi3_5 phi3_5_training phi3_training qwen2_5_vl qwen2_5_vl_training
#   of these, with the list of tools: lfm2 lfm2_training
#   lfm2 writes the turn that calls as '<|im_start|>assistant\n<|im_end|>\n'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 jinja2==3.1.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps trl==1.16.0
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the weather of a town.",
          "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"town": "Riga"}}}]}
TURNS = [{"role": "user", "content": "How is it there?"}, CALL, {"role": "tool", "name": "weather", "content": "rain"},
         {"role": "assistant", "content": "It rains."}]

texts = {}
for path in sorted(Path(sys.prefix).glob("lib/python3*/site-packages/trl/chat_templates/*.jinja")):
    try:
        (texts[path.stem],), _ = render_jinja_template(
            [TURNS], tools=TOOLS, chat_template=path.read_text(), bos_token="<s>", eos_token="</s>"
        )
    except Exception:  # a template that refuses is no surprise
        continue
lost = [name for name, text in texts.items() if "Riga" not in text]
listed = [name for name in lost if "Tells the weather" in texts[name]]
turn = texts["lfm2"].partition("How is it there?<|im_end|>\n")[2].partition("<|im_start|>tool")[0]
print("lost without an error:", *lost)
print("of these, with the list of tools:", *listed)
print("lfm2 writes the turn that calls as", repr(turn))
kinds = ["deepseek_r1_distill", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"]
expected = sorted([*kinds, *(f"{kind}_training" for kind in kinds)])
sys.exit(not (sorted(lost) == expected and listed == ["lfm2", "lfm2_training"] and "assistant" in turn))
PYTHON
