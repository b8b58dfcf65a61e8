"""Child: one run of TRL as a spec asks, in a venv of its own. Prints what was measured as JSON.

Rows come in the order in which our plan meets them and are not shuffled, so both make the same updates. `bf16` is
switched off for fp32 runs, because TRL autocasts by default and ours would then do more exact work.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

from meter import Steps, cuda_peak, forget, memory, warmed

VARIANTS = {  # what differs between TRL as shipped and TRL at its best on this processor
    "shipped": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "best": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
    },
}
LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "hinge": "hinge"}


def main(spec: dict) -> dict:
    import datasets
    import torch
    import transformers
    import trl
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    began = memory("VmRSS")
    empty = warmed(spec["model"]) if spec.get("memory") else began
    forget()
    steps, scoring, told = Steps(spec.get("cuda", False)), {"cpu": 0.0}, {}

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **given):
            steps.begin()

        def on_log(self, args, state, control, logs=None, **given):
            if logs and "loss" in logs:
                steps.end(loss=logs["loss"], grad_norm=float(logs["grad_norm"]))

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *given):
            before = time.process_time()
            done = super()._precompute_ref_logps(*given)
            scoring["cpu"] += time.process_time() - before
            return done

    with tempfile.TemporaryDirectory() as out:
        args = DPOConfig(
            output_dir=out, max_steps=spec["steps"], learning_rate=spec["lr"], lr_scheduler_type="constant",
            warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, beta=spec.get("beta", 0.1), max_length=1024,
            loss_type=[LOSSES[spec.get("objective", "dpo")]], logging_steps=1, save_strategy="no", report_to="none",
            use_cpu=not spec.get("cuda", False), bf16=spec["dtype"] == "bfloat16", seed=0, disable_tqdm=True,
            train_sampling_strategy="sequential", model_init_kwargs={"dtype": "float32"},
            **{**VARIANTS[spec["variant"]], **spec.get("more", {})},
        )  # fmt: skip
        data = datasets.load_dataset("json", data_files=spec["data"], split="train", cache_dir=out + "/cache")
        tokenizer = AutoTokenizer.from_pretrained(spec["model"])
        if "rank" in spec:
            from peft import LoraConfig

            alpha = 2 * spec["rank"]
            adapter = LoraConfig(r=spec["rank"], lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
            told["peft_config"] = adapter
        trainer = Timed(spec["model"], args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Watch()],
                        peft_config=told.pop("peft_config", None))  # fmt: skip
        trainer.train()
        told["rows"] = len(trainer.train_dataset)
    return {
        "steps": steps.found,
        "reference": scoring,
        "empty": empty,
        "cuda_peak": cuda_peak(spec.get("cuda", False)),
        **told,
        "versions": {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
