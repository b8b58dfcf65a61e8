"""Child: online steps of TRL as a spec asks, each split into its parts, in a venv of its own. Prints JSON.

Responses have the lengths that the spec forces, so both do the same work; the reference is a second model, as in ours.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise

from meter import forget, memory, warmed

END = 2


def length(completions: list[str], **_: object) -> list[float]:
    """The reward: some number that costs nothing."""
    return [float(len(text) % 7) for text in completions]


def forced(model, lengths: list[list[int]], prompts: list[list[int]], tokens: int) -> None:
    """Make the model's `generate` end each response where the spec says."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    by_prompt = {tuple(ids): each for ids, each in zip(prompts, lengths, strict=True)}
    generate = model.generate

    class EndAt(LogitsProcessor):
        def __init__(self, wanted: torch.Tensor) -> None:
            self.wanted = wanted

        def __call__(self, input_ids, scores):
            last = input_ids.shape[1] - tokens + 1 >= self.wanted
            scores[:, END] = -torch.inf
            scores[last] = -torch.inf
            scores[last, END] = 0
            return scores

    def ending(*given, **named):
        ids = named["input_ids"] if "input_ids" in named else given[0]
        seen: dict[tuple[int, ...], int] = {}
        wanted = []
        for row in ids[:, -tokens:].tolist():
            nth = seen[tuple(row)] = seen.get(tuple(row), -1) + 1
            wanted.append(by_prompt[tuple(row)][nth])
        named["logits_processor"] = LogitsProcessorList([EndAt(torch.tensor(wanted))])
        return generate(*given, **named)

    model.generate = ending


def parts(trainer) -> dict[str, float]:
    """CPU seconds so far: of generation, and of generation with scoring."""
    spent = {"rollout": 0.0, "draw and score": 0.0}

    def timed(method: str, name: str) -> None:
        plain = getattr(trainer, method)

        def wrapped(*given, **named):
            began = time.process_time()
            result = plain(*given, **named)
            spent[name] += time.process_time() - began
            return result

        setattr(trainer, method, wrapped)

    timed("_generate", "rollout")
    timed("_generate_and_score_completions", "draw and score")
    return spent


def trainer_of(spec: dict, out: str):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kind, config = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}[spec["objective"]]
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    count = len(spec["lengths"][0])
    forced(model, spec["lengths"], spec["prompts"], len(spec["prompts"][0]))
    args = config(
        output_dir=out, per_device_train_batch_size=spec["micro"], num_generations=count,
        gradient_accumulation_steps=spec["rows"] * count // spec["micro"], beta=spec["beta"], learning_rate=spec["lr"],
        max_completion_length=max(map(max, spec["lengths"])), max_steps=spec["steps"], temperature=1.0,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, logging_steps=1, disable_tqdm=True,
        shuffle_dataset=False, gradient_checkpointing=False, seed=0,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": " ".join(f"w{i}" for i in ids)} for ids in spec["prompts"]])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    return kind(model=model, reward_funcs=length, args=args, train_dataset=rows, processing_class=tokenizer)


def main(spec: dict) -> dict:
    import torch
    import transformers
    import trl
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    empty = warmed(spec["model"])
    forget()
    marks = []
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(spec, out)
        spent = parts(trainer)

        class Watch(TrainerCallback):
            def on_train_begin(self, args, state, control, **_):
                self.mark()

            def on_step_end(self, args, state, control, **_):
                self.mark()

            def mark(self):
                marks.append((time.process_time(), *spent.values(), memory("VmHWM")))

        trainer.add_callback(Watch())
        trainer.train()
    steps = []
    for before, after in pairwise(marks):
        step, rollout, both = (b - a for a, b in zip(before[:3], after[:3], strict=True))
        told = {"step": step, "rollout": rollout, "scoring": both - rollout, "update": step - both, "peak": after[3]}
        steps.append(told)
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"steps": steps, "empty": empty, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
