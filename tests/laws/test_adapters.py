"""A run with an adapter is a run like any other: its reference, its resume, its ranks, its draws and its export."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import AN_UPDATE, Killed, killed_at
from making import save_model
from msgspec import UNSET
from msgspec.structs import replace as changed
from peft import LoraConfig, get_peft_model
from recorded import events, lines
from safetensors.torch import load_file
from several import after_steps, on_ranks
from transformers import AutoModelForCausalLM

from preftune import objective as o
from preftune.config.load import load as load_run
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.config.tree import tree_of
from preftune.config.vary import combinations
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import UserError
from preftune.events import listening
from preftune.model import load, scalar
from preftune.model.adapter import AdapterWeights
from preftune.model.config import Ranks
from preftune.rollout.config import Reward
from preftune.run import fits
from preftune.run import online as online_module
from preftune.run.export import merge
from preftune.run.online import prepare_online
from preftune.run.score import score
from preftune.run.sweep import train_all
from preftune.run.train import train


@pytest.fixture
def adapted(run_of: Callable[..., Run]) -> Callable[..., Run]:
    """The usual run with an adapter, at a rate that it needs."""
    return lambda **keys: run_of(**({"adapter__rank": 4, "optim__lr": 1e-2, "optim__epochs": 2} | keys))


def learned(out: Path, folder: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / folder / "adapter_model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """The same record and the same adapter, to the last bit."""
    ours, theirs = learned(a), learned(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(a) == lines(b)


KINDS = (
    {}, {"adapter__start": "pissa"}, {"adapter__start": "olora"}, {"adapter__kind": "dora"},
    {"adapter__ratio": 8.0}, {"adapter__train_also": ["lm_head"]}, {"model__checkpointing": True},
)  # fmt: skip


@pytest.mark.parametrize("weights", ["bfloat16", "float32", "nf4", "int8"])
def test_dora_begins_at_its_base_in_half_precision(adapted: Callable[..., Run], weights: str) -> None:
    if weights in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
    out = train(adapted(adapter__kind="dora", model__weights=weights, model__compute="bfloat16", optim__epochs=1))
    assert lines(out, "evaluations")[0]["log_ratio_rms"] == 0


@pytest.mark.parametrize("keys", KINDS, ids=str)
def test_it_begins_at_the_reference_learns_and_resumes_to_the_same_bits(
    adapted: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, object]
) -> None:
    whole = train(adapted(out=str(tmp_path / "whole"), **keys))
    steps, held = lines(whole), lines(whole, "evaluations")
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=2e-6)  # of a PiSSA run too, in which others begin elsewhere
    assert held[-1]["loss"] < 0.68
    run = adapted(save__every=1, **keys)
    with killed_at(5, monkeypatch, AN_UPDATE), pytest.raises(Killed):
        train(run)
    assert_same(train(run, resume=True), whole)


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens"])
def test_parts_that_the_policy_learns_whole_are_not_the_value_models(part: str, online: Callable[..., Run]) -> None:
    out = train(online(o.PPO(), adapter__train_also=[part]))
    assert any(part in name for name in learned(out))
    assert not any(part in name for name in learned(out, "value"))


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes and torch, about each other
@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_it_learns_on_a_base_of_few_bits(adapted: Callable[..., Run], tmp_path: Path, weights: str) -> None:
    pytest.importorskip("bitsandbytes")
    out = train(adapted(model__weights=weights))
    held = lines(out, "evaluations")
    assert held[0]["loss"] == pytest.approx(0.693147, abs=2e-6)
    assert held[-1]["loss"] < 0.68
    (event,) = events(out, "quantized")
    assert weights in event["text"]
    told: list[str] = []
    with listening(lambda event: told.append(str(event))):
        merged = merge(str(out), tmp_path / "merged")
        score(adapted(model__path=str(out / "model"), adapter__rank=UNSET))
        score(adapted(model__path=str(out / "model"), adapter__rank=UNSET, model__weights=weights))
    assert (merged.quantized, merged.mean < 1e-4 < merged.off_quantized) == (weights, True)
    assert sum("which is another model" in text for text in told) == 1
    with pytest.raises(UserError, match="cannot be trained"):
        train(changed(adapted(model__weights=weights, out=str(tmp_path / "full")), adapter=None))
    with pytest.raises(UserError, match=r"adapter\.start"):
        train(adapted(model__weights=weights, adapter__start="pissa", out=str(tmp_path / "pissa")))


def test_every_start_and_full_training_share_one_store(adapted: Callable[..., Run], tmp_path: Path) -> None:
    train(changed(adapted(out=str(tmp_path / "full")), adapter=None))
    for start in ("zero", "pissa"):
        (event,) = events(train(adapted(adapter__start=start, out=str(tmp_path / start))), "reference")
        assert event["scored"] == 0


def test_two_ranks_are_one(adapted: Callable[..., Run], tmp_path: Path) -> None:
    one = train(adapted(out=str(tmp_path / "one"), adapter__start="pissa"))
    run = adapted(out=str(tmp_path / "two"), adapter__start="pissa")

    def work(dist: Distributed) -> None:
        train(run)

    on_ranks(2, tmp_path / "meet", work)
    ours, theirs = learned(one), learned(tmp_path / "two")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.parametrize(
    ("shard", "more"),
    [
        ("step", {}), ("layer", {}), ("layer", {"adapter__start": "pissa", "model__checkpointing": True}),
        ("layer", {"adapter__kind": "dora", "adapter__train_also": ["lm_head"], "model__layout": "padded"}),
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_that_ranks_divide_is_that_of_one_process(
    adapted: Callable[..., Run], tmp_path: Path, shard: str, more: dict[str, Any]
) -> None:
    """Also of a step whose last row leaves a rank without a pack; and one process goes on with what two have saved."""
    keys = {"batch__rows": 7, "batch__tokens": 60, "optim__lr": 1e-4, "save__every": 4, **more}
    one = learned(train(adapted(**keys, out=str(tmp_path / "one"))))
    run = adapted(**keys, ranks__shard=shard)
    assert on_ranks(2, tmp_path / "meet", lambda _: str(train(run))) == [run.out] * 2
    two = learned(Path(run.out))
    assert one.keys() == two.keys()
    assert all(float((one[name] - two[name]).abs().max()) <= 2e-6 for name in one)
    longer = changed(run, optim=changed(run.optim, epochs=3), ranks=Ranks())
    out = train(longer, resume=True, allow_change=["optim.epochs"])
    whole = train(adapted(**keys, optim__epochs=3, out=str(tmp_path / "whole")))
    assert lines(out)[-1]["step"] == lines(whole)[-1]["step"]


def test_a_base_of_another_type_is_cut_by_layers(adapted: Callable[..., Run], tmp_path: Path) -> None:
    """The usual one on a GPU: in bfloat16, under an adapter in fp32."""
    keys = {"model__weights": "bfloat16", "optim__lr": 1e-4, "optim__epochs": None, "optim__steps": 2}
    cut = adapted(**keys, ranks__shard="layer", data__evaluate=None)
    on_ranks(2, tmp_path / "on", lambda _: str(train(cut)))
    one = learned(train(adapted(**keys, data__evaluate=None, out=str(tmp_path / "one"))))
    assert all(float((tensor - one[name]).abs().max()) < 1e-4 for name, tensor in learned(Path(cut.out)).items())


def test_killed_on_one_rank_it_goes_on_to_the_same_bits(adapted: Callable[..., Run], tmp_path: Path) -> None:
    keys = {"save__every": 1, "ranks__shard": "layer", "data__evaluate": None}
    whole, cut = (adapted(**keys, out=str(tmp_path / name)) for name in ("whole", "cut"))
    on_ranks(2, tmp_path / "a", lambda _: str(train(whole)))
    kill = after_steps(Path(cut.out), 2, lambda processes: processes[1].kill())
    assert on_ranks(2, tmp_path / "b", lambda _: str(train(cut)), kill)[1] is None
    assert len(lines(Path(cut.out))) < len(lines(Path(whole.out)))
    on_ranks(2, tmp_path / "c", lambda _: str(train(cut, resume=True)))
    assert_same(Path(whole.out), Path(cut.out))


def test_it_goes_on_from_an_adapter_which_is_then_the_reference(adapted: Callable[..., Run], tmp_path: Path) -> None:
    first = train(adapted(out=str(tmp_path / "first"), adapter__start="pissa"))
    keys = {"adapter__rank": UNSET, "adapter__path": str(first / "model"), "optim__lr": 1e-3}
    second = train(adapted(out=str(tmp_path / "second"), **keys))
    before, after = lines(first, "evaluations")[-1], lines(second, "evaluations")[0]
    assert after["chosen_logp"] == pytest.approx(before["chosen_logp"], abs=1e-4)
    assert after["loss"] == pytest.approx(0.693147, abs=2e-6)
    assert lines(second, "evaluations")[-1]["loss"] < after["loss"]


def of_peft(base: str | Path, folder: Path, **keys: object) -> Path:
    """An adapter as people make it by peft, with numbers that show."""
    torch.manual_seed(0)
    settings = {"r": 8, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1} | keys
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        around = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings)
        )
        with torch.no_grad():
            for name, parameter in around.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        around.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "keys", [{}, {"target_modules": r".*layers\.1\.self_attn\.(q|v)_proj"}], ids=["names", "pattern"]
)
def test_a_record_says_what_the_adapter_is_that_it_goes_on_from(
    adapted: Callable[..., Run], tmp_path: Path, keys: dict
) -> None:
    base = adapted().model.path
    stored = of_peft(base, tmp_path / "stored", use_rslora=True, **keys)
    asked = {"adapter__rank": UNSET, "adapter__path": str(stored), "optim__epochs": None, "save__every": 1}
    out = train(adapted(**asked, optim__steps=2))
    recorded, identity = load_run(str(out / "run.toml")).adapter, json.loads((out / "identity.json").read_text())
    assert (recorded.rank, recorded.alpha, recorded.scaling, recorded.kind) == (8, 24, "root", "lora")
    assert recorded.targets == ("q_proj", "v_proj")
    assert (identity["adapter.rank"], identity["adapter.targets"]) == (8, ["q_proj", "v_proj"])
    assert "lora_dropout = 0.1, which is not used" in events(out, "adapter_dropout")[0]["text"]
    run = load_run(str(out / "run.toml"))
    train(
        changed(run, optim=changed(run.optim, steps=3)), resume=True, allow_change=["optim.steps"]
    )  # what a record says is a run once more
    train(adapted(**asked, optim__steps=4), resume=True, allow_change=["optim.steps"])
    with pytest.raises(UserError, match=r"adapter\.rank.*goes on from says 8"):
        train(adapted(**asked | {"adapter__rank": 4}, optim__steps=4))


def test_an_adapter_that_goes_on_with_another_base_names_it(adapted: Callable[..., Run], tmp_path: Path) -> None:
    first, other = train(adapted(out=str(tmp_path / "first"), optim__epochs=1)), save_model(tmp_path / "other", seed=7)
    keys = {"adapter__rank": UNSET, "adapter__path": str(first / "model"), "model__path": str(other)}
    second = train(adapted(out=str(tmp_path / "second"), optim__epochs=1, **keys))
    settings = json.loads((second / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(other.resolve())
    (event,) = events(second, "adapter_base")
    assert str(other) in event["text"]


def test_a_stored_adapter_scores_and_merges_as_it_was_trained(adapted: Callable[..., Run], tmp_path: Path) -> None:
    run = adapted(adapter__kind="dora")
    out = train(run)
    held_out = changed(run.data, train=run.data.evaluate, evaluate=None)
    model = changed(run.model, path=str(out / "model"))
    scores = changed(
        run, model=model, adapter=None, data=held_out, reference=changed(run.reference, path=run.model.path)
    )
    means = score(scores)
    assert means["chosen_logp"] == pytest.approx(lines(out, "evaluations")[-1]["chosen_logp"], abs=1e-4)
    assert merge(str(out), tmp_path / "merged").worst < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    means = score(changed(scores, model=changed(run.model, path=str(tmp_path / "merged"))))
    assert means["chosen_logp"] == pytest.approx(lines(out, "evaluations")[-1]["chosen_logp"], abs=1e-4)
    with pytest.raises(UserError, match="not empty"):
        merge(str(out), tmp_path / "merged")


def test_a_reward_model_may_be_an_adapter(adapted: Callable[..., Run]) -> None:
    run = changed(adapted(objective="reward"), reference=None)
    out = train(run)
    assert "base_model.model.score.weight" in learned(out)
    data = changed(run.data, train=run.data.evaluate, evaluate=None)
    means = score(changed(run, model=changed(run.model, path=str(out / "model")), adapter=None, data=data))
    assert means["accuracy"] == pytest.approx(lines(out, "evaluations")[-1]["accuracy"])


def words(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    """How many different words a response has."""
    return [len(set(response.split())) / 4 for response in responses]


@pytest.fixture
def online(adapted: Callable[..., Run]) -> Callable[..., Run]:
    """A run with an adapter that draws to prompts."""

    def make(objective: object, **keys: object) -> Run:
        run = adapted(**({"rollout__tasks": 4, "rollout__responses": 3, "rollout__max_tokens": 5, "batch__rows": 2,
                          "save__every": 1, "evaluate__samples": 2, "optim__epochs": None, "optim__steps": 6}
                         | keys))  # fmt: skip
        data = changed(run.data, train=[{"prompt": f"w{i} w{i + 3} w{i + 7}"} for i in range(3, 10)], evaluate=None)
        return changed(run, objective=objective, reward=words, data=data, reference=None)

    return make


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO(), o.DPO()], ids=lambda objective: objective.name)
def test_a_run_that_draws_resumes_to_the_same_bits(
    objective: o.Formula, online: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(changed(online(objective), out=str(tmp_path / "whole")))
    with killed_at(3, monkeypatch, AN_UPDATE), pytest.raises(Killed):
        train(online(objective))
    out = train(online(objective), resume=True)
    assert_same(out, whole)
    (check,) = events(whole, "start_check")
    assert check["residual"] < 1e-5
    if isinstance(objective, o.PPO):
        assert all(torch.equal(a, learned(whole, "value")[n]) for n, a in learned(out, "value").items())


def test_policy_reference_and_value_model_stand_on_one_base(online: Callable[..., Run]) -> None:
    models = prepare_online(resolve(online(o.PPO())), SINGLE_PROCESS).training
    source, policy, value = models.source, models.models.policy, models.models.value
    anchor = source.anchor  # type: ignore[attr-defined]
    own = ("lora_", "score", "lm_head")
    bases = [
        {p.data_ptr() for name, p in model.module.named_parameters() if not any(part in name for part in own)}
        for model in (policy, value, anchor)
    ]
    assert bases[0] == bases[1] == bases[2]
    assert isinstance(value.weights, AdapterWeights)
    assert not policy.weights.trained().keys() & value.weights.trained().keys()
    assert "score.modules_to_save.value.weight" in value.weights.trained()


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO()], ids=lambda objective: objective.name)
def test_a_reward_model_on_the_same_base_is_no_second_model(
    objective: o.Formula, adapted: Callable[..., Run], online: Callable[..., Run], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It gives the scores that it gives by itself, and a run with it resumes to the same bits."""
    scored = {"objective__name": "reward", "reference__kind": "none", "reference__store": UNSET}
    reward = train(adapted(**scored, optim__epochs=1, out=str(tmp_path / "reward")))
    run = changed(online(objective), reward=(Reward(model=str(reward / "model")),))
    loaded, right = [], load.load_model

    def counted(path: object, **keys: Any) -> load.Loaded:
        loaded.append(path)
        return right(path, **keys)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        for module in (load, scalar):
            patch.setattr(module, "load_model", counted)
        whole = train(changed(run, out=str(tmp_path / "whole")))
    assert len(loaded) == 1
    assert "adapter on the policy's base" in events(whole, "reward_model")[0]["text"]
    with killed_at(3, monkeypatch, AN_UPDATE), pytest.raises(Killed):
        train(run)
    assert_same(train(run, resume=True), whole)
    with monkeypatch.context() as patch:
        for module in (online_module, fits):
            patch.setattr(module, "stands_on_base", lambda *_: False)
        apart = train(changed(run, out=str(tmp_path / "apart")))
    ours, theirs = (([line["score"] for line in lines(out, "phases")]) for out in (whole, apart))
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO()], ids=lambda objective: objective.name)
def test_a_reward_model_that_cannot_be_read_is_named_by_its_key(
    objective: o.Formula, adapted: Callable[..., Run], online: Callable[..., Run], tmp_path: Path
) -> None:
    scored = {"objective__name": "reward", "reference__kind": "none", "reference__store": UNSET}
    reward = train(adapted(**scored, optim__epochs=1, out=str(tmp_path / "reward"))) / "model"
    tensors = reward / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    for path in (reward, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"^reward\.model: {path}"):
            train(changed(online(objective), reward=(Reward(model=str(path)),)))


def test_a_sweep_over_ranks_scores_the_reference_once(adapted: Callable[..., Run], tmp_path: Path) -> None:
    outs = train_all(combinations(tree_of(adapted()), ["adapter.rank=2,4"]), tmp_path / "sweep")
    assert [events(out, "reference")[0]["scored"] for out in outs][1:] == [0]
    assert {len(next(iter(learned(out).values()))) for out in outs} == {2, 4}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"reference.kind": "moving"}, "moving"),
        ({"adapter__kind": "dora", "adapter__start": "pissa"}, "adapter.start"),
        ({"adapter__path": "somewhere"}, "adapter.path"),
        ({"adapter__rank": 0}, "adapter.rank"),
        ({"adapter__lora_alpha": 8}, "alpha"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(adapted: Callable[..., Run], keys: dict, says: str) -> None:
    def begin() -> None:
        if "reference.kind" in keys:
            run = adapted()
            from preftune.reference.config import Moving

            train(changed(run, reference=Moving()))
        else:
            train(adapted(**keys))

    with pytest.raises(UserError) as error:
        begin()
    assert says in str(error.value)


def test_an_adapter_is_not_trained_as_a_model(adapted: Callable[..., Run], tmp_path: Path) -> None:
    out = train(adapted(optim__epochs=1))
    run = adapted(out=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"adapter\.path"):
        train(changed(run, model=changed(run.model, path=str(out / "model")), adapter=None))


def test_a_model_given_in_python_keeps_its_adapter_and_is_not_adapted_twice(
    adapted: Callable[..., Run], tmp_path: Path
) -> None:
    from preftune.tokens.tokenizer import load_tokenizer

    run = adapted(optim__epochs=1)
    path = str(run.model.path)
    module = AutoModelForCausalLM.from_pretrained(path)
    run = changed(run, model=changed(run.model, path=module, tokenizer=load_tokenizer(path)))
    out = train(run)
    assert module.config._attn_implementation == "sdpa"
    name = next(name for name in learned(out) if "lora_B" in name)
    inside = name.removeprefix("base_model.model.").replace("lora_B.", "lora_B.default.")
    assert torch.equal(dict(module.named_parameters())[inside], learned(out)[name])
    with pytest.raises(UserError, match="has an adapter"):
        train(changed(run, out=str(tmp_path / "again")))
