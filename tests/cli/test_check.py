"""What `preftune check` says about GPUs, from a config alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import save_model, save_pairs

SEVEN_BILLION = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def check(command):
    """`preftune check` where the folders m and moe hold nothing but a config.json."""
    for name, config in {"m": SEVEN_BILLION, "moe": EXPERTS}.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config))

    def run(line: str, code: int = 0) -> str:
        ended_with, output = command("check", *line.split())
        assert ended_with == code, output
        return output

    return run


def lines(output: str) -> list[str]:
    """The lines of the table of what fits."""
    return [line for line in output.splitlines() if "every weight" in line or "adapter of" in line]


def test_one_card_and_a_model_of_7_billion(check) -> None:
    output = check("model.path=m --gpus 1 --gpu-memory 24")
    assert "7,615,616,512 weights on GPUs of 24 GiB" in output
    own, *others = lines(output)
    assert own.split()[:2] == ["1", ">"]
    assert "does not fit" in own
    assert ["does not fit" in line for line in others][-2:] == [False, False]
    assert "This run does not fit on 1 GPU of 24 GiB" in output
    assert "Change first: " in output
    assert "adapter.rank=16" in output.partition("Change first: ")[2]


def test_eight_cards_are_counted_by_powers_of_two(check) -> None:
    output = check("model.path=m --gpus 8 --gpu-memory 80")
    assert [line.split()[0] for line in lines(output) if line.split()[0].isdigit()] == ["1", "2", "4", "8"]
    assert "This run fits on 8 GPUs of 80 GiB" in output


def test_the_words_of_the_remedy_make_a_run_that_fits(check) -> None:
    output = check("model.path=m --gpu-memory 24")
    words = output.partition("Change first: ")[2].partition(" (")[0]
    output = check(f"model.path=m --gpu-memory 24 {words}")
    assert "This run fits on 1 GPU" in output


def test_nothing_may_fit(check) -> None:
    output = check("model.path=moe --gpu-memory 24")
    assert "Nor does any other way" in output


def test_rows_say_how_long_a_pack_has_to_be(command) -> None:
    save_model(Path("m"))
    save_pairs(Path("p.jsonl"), 12)
    code, output = command("check", "model.path=m", "data.train=p.jsonl", "--gpu-memory", "24")
    assert code == 0
    assert "tokens a step with sharing" in output
    assert "This run fits on 1 GPU of 24 GiB" in output
    code, output = command("check", "model.path=m", "batch.tokens=300000000", "--gpu-memory", "24")
    assert code == 0
    assert "packs of at least 300,000,000 tokens" in output
    assert "This run does not fit" in output


def test_models_beside_the_policy_are_counted(check) -> None:
    """A copy that a draw's reference is, a reward model, a value model with gradient and moments."""
    Path("score.py").write_text("def score(prompt, responses, answer):\n    return [0.0 for _ in responses]\n")
    runs = {
        "objective=dpo": 0,
        "objective=dpo reference=moving": 1,
        "objective=rloo rollout.max_tokens=4 reward.function=score.py:score": 1,
        "objective=rloo rollout.max_tokens=4 reward.model=m": 2,
        "objective=ppo rollout.max_tokens=4 reward.model=m": 6,
    }
    needed = {}
    for words in runs:
        output = check(f"model.path=m {words} --gpu-memory 24")
        needed[words] = float(lines(output)[0].partition("none")[2].split()[0])
    weights = 4 * 7_615_616_512 / 2**30
    for words, models in runs.items():
        assert needed[words] - needed["objective=dpo"] == pytest.approx(models * weights, rel=0.01, abs=0.2)


ABSURD = {
    "--gpus 0 --gpu-memory 24": "--gpus: 0 GPUs make no sense. Give 1 to 1024.",
    "--gpus -8 --gpu-memory 24": "--gpus: -8 GPUs make no sense.",
    "--gpus 1.5 --gpu-memory 24": "--gpus: 1.5 GPUs make no sense.",
    "--gpus nan --gpu-memory 24": "--gpus: nan GPUs make no sense.",
    "--gpus 100000 --gpu-memory 24": "--gpus: 100000 GPUs make no sense.",
    "--gpus 8 --gpu-memory 0": "--gpu-memory: 0 GiB make no GPU. It is in GiB: give 1 to 4096, such as 24 or 80.",
    "--gpu-memory -24": "--gpu-memory: -24 GiB make no GPU.",
    "--gpu-memory nan": "--gpu-memory: nan GiB make no GPU.",
    "--gpu-memory inf": "--gpu-memory: inf GiB make no GPU.",
    "--gpu-memory 24000000000": "--gpu-memory: 2.4e+10 GiB make no GPU.",
}


@pytest.mark.parametrize("flags", ABSURD)
def test_absurd_flags_are_one_sentence(flags: str, check) -> None:
    output = check(f"model.path=m {flags}", code=2)
    assert ABSURD[flags] in output
    assert len(output.splitlines()) == 1


REFUSED = {
    "model.weights=nf4": "weights in nf4 cannot be trained",
    'adapter.rank=4 adapter.targets=["nonsense"]': "the model has no layer nonsense",
    'adapter.rank=4 adapter.train_also=["nonsense"]': "the model has no part nonsense",
    "adapter.rank=100000": "is more than the smaller side",
    "adapter.path=nowhere": "nowhere is no adapter",
    "adapter.rank=4 model.weights=nf4 ranks.shard=step": "a base in nf4 is not divided",
    "reference=moving ranks.shard=layer": "the reference that follows is a second whole model",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_training_refuses_is_refused(words: str, check) -> None:
    output = check(f"model.path=m {words} --gpus 8 --gpu-memory 80", code=2)
    assert REFUSED[words] in output


def test_what_an_adapter_trains_is_counted(check) -> None:
    """A head that is trained whole is copied, and has a gradient and moments; a base that begins as another adapter has
    that one too."""
    needed = {}
    for words in ("", 'adapter.train_also=["lm_head"]', 'adapter.targets=["q_proj"]', "adapter.start=pissa"):
        output = check(f"model.path=m adapter.rank=16 model.weights=bfloat16 {words} --gpu-memory 80")
        needed[words] = float(lines(output)[0].partition("none")[2].split()[0])
    plain, head, few, begun = needed.values()
    assert 16 * 152064 * 3584 / 2**30 * 0.7 < head - plain < 16 * 152064 * 3584 / 2**30 * 1.3
    assert few < plain < begun


def test_a_shard_that_is_named_is_the_one_that_is_counted(check) -> None:
    for shard in ("none", "step", "layer"):
        output = check(f"model.path=m ranks.shard={shard} --gpus 4 --gpu-memory 80")
        own = [line for line in lines(output) if ">" in line]
        assert shard in own[-1]
        assert ("does not fit" in own[-1]) == (shard != "layer")


def test_flags_need_a_model(check) -> None:
    output = check("--gpus 8 --gpu-memory 80", code=2)
    assert "model.path: no model is named." in output


def test_gpus_that_are_not_here_need_their_memory(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    output = check("model.path=m --gpus 8", code=2)
    assert "--gpus: this machine has no GPU whose memory could be taken. Add --gpu-memory 24" in output
