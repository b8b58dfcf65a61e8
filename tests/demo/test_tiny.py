"""The small model, what it draws, and the stages of the demo."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.config.load import dump, load
from preftune.demo import measure, readable
from preftune.demo import stages as demo
from preftune.demo.sampling import draw, load_policy, logp_of
from preftune.demo.tiny import make_tiny, word_tokenizer
from preftune.errors import UserError
from preftune.events import Event, Progress, listening
from preftune.files import digest, read_lines, write
from preftune.folders import verify
from preftune.model.scalar import load_reward_model, model_scores
from preftune.rows.row import Demo, Place
from preftune.tokens.tokenize import tokenize
from preftune.tokens.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny(path, readable.words(), width=16, layers=1, seed=3)
    return path


def test_it_loads_elsewhere_and_follows_from_the_seed(folder: Path, tmp_path: Path) -> None:
    assert verify(folder) == ""
    module, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert module.config.vocab_size == len(tokenizer) == len(readable.words()) + 3
    for seed, same in ((3, True), (4, False)):
        make_tiny(tmp_path / "again", readable.words(), width=16, layers=1, seed=seed)
        assert (digest(tmp_path / "again" / "model.safetensors") == digest(folder / "model.safetensors")) is same


def test_a_review_is_its_words_and_goes_back_to_its_text(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    text = " The taste was very good, but the price was sad."
    row = Demo(prompt=readable.prompt("soup"), response=text, place=Place("rows", 1))
    (group,) = tokenize([row], tokenizer, max_tokens=999).groups
    assert tokenizer.convert_ids_to_tokens(group.prompt.tolist()) == ["Review", " of", " the", " soup", ":"]
    assert tokenizer.convert_ids_to_tokens(group.responses[0].tolist())[-3:] == [" sad", ".", "<end>"]
    assert tokenizer.decode(group.responses[0], skip_special_tokens=True) == text


def test_the_tokenizer_knows_the_whole_world() -> None:
    tokenizer, rng = word_tokenizer(readable.words()), np.random.default_rng(0)
    for dish in readable.DISHES:
        text = readable.prompt(dish) + readable.review(rng)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id in tokenizer("Review of the moon:")["input_ids"]


def test_draws_are_the_models_own_distribution_and_repeat(folder: Path) -> None:
    policy, tokenizer = load_policy(folder), load_tokenizer(str(folder))
    first, again = (draw(policy, tokenizer, ["Review of the soup:"], 3000, longest=2, seed=5)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.group.responses, again.group.responses, strict=True))
    module = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = module(torch.from_numpy(first.group.prompt.astype(np.int64))[None]).logits[0, -1]
    expected = logits.softmax(-1).numpy()
    shares = np.bincount([ids[0] for ids in first.group.responses], minlength=len(expected)) / 3000
    assert np.abs(shares - expected).max() < 4 * np.sqrt(expected.max() / 3000)
    assert first.logp == pytest.approx(logp_of(policy, [first])[0], abs=1e-4)


def test_a_draw_ends_with_its_first_end_token_or_is_cut(folder: Path) -> None:
    policy, tokenizer = load_policy(folder), load_tokenizer(str(folder))
    events: list[Event] = []
    prompts = [readable.prompt(dish) for dish in readable.DISHES[:2]]
    with listening(events.append):
        drawn = draw(policy, tokenizer, prompts, 400, longest=30, seed=0, stage="drawing")
    assert events == [Progress("drawing", 400, 800), Progress("drawing", 800, 800)]
    end = tokenizer.eos_token_id
    ids = [response for sample in drawn for response in sample.group.responses]
    assert all((end not in response[:-1]) and (response[-1] == end or len(response) == 30) for response in ids)
    assert {bool(response[-1] == end) for response in ids} == {True, False}
    assert all("<end>" not in text for sample in drawn for text in sample.texts)


def test_the_demo_writes_run_files_that_anyone_can_train_with(tmp_path: Path) -> None:
    demo.make(tmp_path / "demo", 0)
    sft, dpo = load(tmp_path / "demo" / "sft.toml"), load(tmp_path / "demo" / "dpo.toml", ["objective.beta=0.1"])
    assert (sft.objective.__class__.__name__, dpo.objective.beta) == ("NLL", 0.1)
    reward, rloo = load(tmp_path / "demo" / "reward.toml"), load(tmp_path / "demo" / "rloo.toml", ["objective=ppo"])
    assert rloo.reward.model == str(Path(reward.out) / "model")
    assert rloo.rollout is not None
    assert len(read_lines(tmp_path / "demo" / "prompts.jsonl")) == len(demo.JUDGED_DISHES) == rloo.rollout.tasks
    rows = read_lines(tmp_path / "demo" / "reviews.jsonl")
    assert len(rows) == 24 * demo.REVIEWS
    assert not set(demo.JUDGED_DISHES) & set(demo.HELD_OUT_DISHES)
    demo.make(tmp_path / "demo", 1)  # its own folder is replaced
    assert read_lines(tmp_path / "demo" / "reviews.jsonl") != rows


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        demo.make(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_stages_lead_to_both_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demo with a model after no SFT, two updates a run and few draws."""
    for name, value in (("DRAWN", 8), ("DRAWN_HELD_OUT", 4), ("REVIEWS", 1)):
        monkeypatch.setattr(demo, name, value)
    for name, value in (("DRAWN", 8), ("DRAWN_REFERENCE", 16), ("SCORED", 8)):
        monkeypatch.setattr(measure, name, value)
    folder = tmp_path / "demo"
    demo.make(folder, 0)
    shutil.copytree(folder / "untrained", folder / "sft" / "model")
    demo.ask(folder, 0)
    for name in ("dpo", "reward", "rloo"):
        run = load(folder / f"{name}.toml", ["evaluate.samples=0"])
        write(folder / f"{name}.toml", dump(replace(run, optim=replace(run.optim, epochs=None, steps=2))))
        demo.tune(folder / f"{name}.toml")
    comparison = demo.measure(folder, 0)
    assert comparison.models[:2] == ("before", "DPO")
    values = {line.name: line.values for line in comparison.lines}
    assert all(len(of) == len(comparison.models) for of in values.values())
    assert values["models in memory"] == ("1", "1", "3")
    assert {len(sample.texts) for sample in comparison.samples} == {3}
    for name, model in (("dpo", "DPO"), ("rloo", comparison.models[2])):
        page = (folder / name / "report.html").read_text()
        assert "slope of the rewards" in page
        assert model in page
    assert reward_model_slope(folder) == pytest.approx(float(values["slope of the rewards"][2]), abs=0.006)


def reward_model_slope(folder: Path) -> float:
    """The slope by least squares with a constant for each dish, through the library's own scoring of texts."""
    reference = measure.Reference(folder / "sft" / "model", demo.HELD_OUT_DISHES, 0)
    model = load_reward_model(str(folder / "reward" / "model"))
    rows, scores = [], []
    for index, sample in enumerate(reference.drawn):
        dish = np.eye(len(reference.drawn))[index]
        rows += [[readable.reward(text), *dish] for text in sample.texts[: measure.SCORED]]
        for ids in sample.group.responses[: measure.SCORED]:
            scores += list(model_scores(model, [replace(sample.group, responses=(ids,))], 512)[0])
    return float(np.linalg.lstsq(np.array(rows), np.array(scores), rcond=None)[0][0])
