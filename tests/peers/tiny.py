"""TRL's whole DPO trainer on a random model of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

WORDS = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(29))]
TEMPLATE = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )


def scored_words(folder: Path, row: dict[str, object]) -> tuple[str, str]:
    """The words of the chosen and of the rejected side of a pair of conversations that TRL's loss counts."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    args = DPOConfig(output_dir=str(folder / "out"), use_cpu=True, report_to="none", precompute_ref_log_probs=True,
                     bf16=False, disable_tqdm=True)  # fmt: skip
    data = Dataset.from_list([row])
    trainer = DPOTrainer(tiny_model(), args=args, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = (
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    )
    return chosen, rejected


def precomputed(folder: Path, **fields: object) -> list[float]:
    """Reference log-probabilities of the chosen responses, as TRL computes them or finds them under `folder`."""
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        made = [{"prompt": f"w{i} w2", "chosen": "w3 w4 w5 w6 w7 w8", "rejected": f"w{i + 9}"} for i in range(4)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    data = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "kept"))
    args = DPOConfig(output_dir=str(folder / "out"), use_cpu=True, report_to="none", precompute_ref_log_probs=True,
                     max_length=None, bf16=False, disable_tqdm=True, **fields)  # fmt: skip
    trainer = DPOTrainer(tiny_model(), args=args, train_dataset=data, processing_class=tiny_tokenizer())
    return list(trainer.train_dataset["ref_chosen_logps"])
