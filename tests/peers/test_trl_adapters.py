"""TRL's reference under an adapter that begins in the base's own directions: a row of docs/peers.md, reproduced.

A test that fails here after an upgrade is good news, and the row goes.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="TRL is installed by `make test-peers` only")
pytest.importorskip("peft", reason="peft is installed by `make test-peers` only")

from datasets import Dataset
from making import save_model
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("start", "right"), [(True, True), ("pissa", False), ("olora", False)])
def test_the_reference_is_the_model_with_its_adapter_off(tmp_path: Path, start: object, right: bool) -> None:
    """Before the first update policy and reference are one model, so the loss is ln 2. peft takes what a PiSSA or OLoRA
    adapter begins as out of the base, and TRL's reference is that base. For ours see tests/laws/test_adapters.py."""
    folder = save_model(tmp_path / "model")
    rows = [{"prompt": "w3 w4", "chosen": f" w{5 + i} w6", "rejected": f" w{40 + i} w50 w51"} for i in range(8)]
    args = DPOConfig(output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=8, learning_rate=1e-9,
                     logging_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no", seed=0,
                     gradient_checkpointing=False, disable_tqdm=True)  # fmt: skip
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=start)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(str(folder), args=args, train_dataset=Dataset.from_list(rows), peft_config=adapter,
                             processing_class=AutoTokenizer.from_pretrained(folder))  # fmt: skip
        trainer.train()
    loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    assert (abs(loss - math.log(2)) < 1e-5) == right, loss
