"""A loaded model of the caller's after a run with an adapter: tuned, as transformers has an adapter that it loaded, and
nothing else; its base again when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from packaging.version import parse
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION

import preftune
from preftune import objective as o
from preftune.config.run import Run
from preftune.events import StepDone
from preftune.model.load import load_model
from preftune.run.export import merge
from preftune.run.train import train


def lengths(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    return [len(response) / 10 for response in responses]


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # what peft says when it loads
takes_peft = pytest.mark.skipif(
    parse(version("peft")) < parse(MIN_PEFT_VERSION), reason=f"transformers asks for peft {MIN_PEFT_VERSION}"
)
DRAWN = {"rollout__responses": 3, "rollout__max_tokens": 4, "optim__steps": 2, "optim__epochs": None}


@pytest.fixture
def adapted(run_of: Callable[..., Run], world: Path) -> Callable[..., Run]:
    """A run with an adapter on a loaded model."""

    def make(objective: object = None, **keys: object) -> Run:
        draws = isinstance(objective, o.RLOO | o.PPO)
        run = run_of(**({"adapter__rank": 4, "optim__lr": 1e-2, "optim__epochs": 1} | (DRAWN if draws else {}) | keys))
        run = replace(run, model=replace(run.model, path=loaded(world), tokenizer=tokenizer(world)))
        run = replace(run, reward=lengths) if draws else run
        run = replace(run, reference=None) if isinstance(objective, o.Reward) else run
        return run if objective is None else replace(run, objective=objective)

    return make


def loaded(world: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)


def tokenizer(world: Path) -> object:
    return AutoTokenizer.from_pretrained(world / "model")


def model_of(run: Run) -> PreTrainedModel:
    assert isinstance(run.model.path, PreTrainedModel)
    return run.model.path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 15)[None]).logits


@pytest.mark.parametrize("start", ["zero", "pissa", "olora"])
@pytest.mark.parametrize("objective", [o.DPO(), o.RLOO(), o.PPO()], ids=lambda objective: objective.name)
def test_it_is_the_tuned_policy_and_then_its_base_again(
    objective: object, start: str, adapted: Callable[..., Run], world: Path, tmp_path: Path
) -> None:
    run = adapted(objective, adapter__start=start)
    model, out, base = model_of(run), train(run), loaded(world)
    exported = PeftModel.from_pretrained(loaded(world), out / "model")
    assert torch.allclose(logits(model), logits(exported), atol=1e-5)
    ours = load_model(str(out / "model"), revision=None, weights="float32", device=torch.device("cpu"), location="")
    assert torch.allclose(logits(ours.module), logits(exported), atol=1e-5)  # and it refuses tensors of others
    assert not torch.allclose(logits(model), logits(base), atol=1e-4)
    assert not any(".value." in name for name, _ in model.named_parameters())
    with pytest.raises(preftune.UserError, match=r"preftune\.unload"):
        train(replace(run, out=str(tmp_path / "second")))
    assert torch.allclose(logits(model), logits(exported), atol=1e-5)  # a refused run takes nothing out
    preftune.unload(model)
    assert torch.equal(logits(model), logits(base))
    assert model.state_dict().keys() == base.state_dict().keys()
    train(replace(run, out=str(tmp_path / "second")))


@takes_peft
@pytest.mark.parametrize("start", ["zero", "pissa", "olora"])
@pytest.mark.parametrize("objective", [o.DPO(), o.PPO()], ids=lambda objective: objective.name)
def test_transformers_saves_its_adapter(
    objective: object, start: str, adapted: Callable[..., Run], world: Path, tmp_path: Path
) -> None:
    run = adapted(objective, adapter__start=start)
    model = model_of(run)
    train(run)
    assert model.active_adapters() == ["default"]
    model.save_pretrained(tmp_path / "saved")
    again = PeftModel.from_pretrained(loaded(world), tmp_path / "saved")
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


@takes_peft
def test_the_layers_of_a_deleted_adapter_are_refused_and_taken_out(adapted: Callable[..., Run], world: Path) -> None:
    """transformers leaves them, and what it then saves loads as random weights (findings/)."""
    run = replace(adapted(), adapter=None)
    model = model_of(run)
    model.add_adapter(LoraConfig(r=4, target_modules="all-linear"))
    model.delete_adapter("default")
    layers = model.state_dict().keys()
    with pytest.raises(preftune.UserError, match=r"preftune\.unload"):
        train(run)
    assert model.state_dict().keys() == layers  # a refused run takes nothing out
    preftune.unload(model)
    assert model.state_dict().keys() == loaded(world).state_dict().keys()
    assert torch.equal(logits(model), logits(loaded(world)))


def test_one_that_failed_leaves_nothing(adapted: Callable[..., Run], world: Path) -> None:
    run = adapted()

    class Failure(BaseException):
        pass

    def fail(event: object) -> None:
        if isinstance(event, StepDone):
            raise Failure

    with pytest.raises(Failure):
        train(run, sinks=[fail])
    assert torch.equal(logits(model_of(run)), logits(loaded(world)))
    assert isinstance(train(run, resume=True), Path)


@pytest.mark.parametrize("start", ["zero", "pissa", "olora"])
def test_a_reward_model_leaves_the_language_model_that_it_stands_on(
    start: str, adapted: Callable[..., Run], world: Path
) -> None:
    run = adapted(o.Reward(), adapter__start=start)
    out = train(run)
    assert torch.equal(logits(model_of(run)), logits(loaded(world)))
    assert preftune.Record.open(out).steps


def test_the_adapter_names_the_model_as_it_names_itself(
    adapted: Callable[..., Run], world: Path, tmp_path: Path
) -> None:
    out = train(adapted())
    again = AutoPeftModelForCausalLM.from_pretrained(out / "model")
    assert torch.allclose(logits(again), logits(PeftModel.from_pretrained(loaded(world), out / "model")))
    merge(str(out), tmp_path / "merged")


def test_what_changes_on_it_is_said(run_of: Callable[..., Run], world: Path) -> None:
    model = loaded(world).to(torch.bfloat16)
    model.train()
    run = replace(run_of(optim__epochs=1), reference=None)
    run = replace(run, model=replace(run.model, path=model, tokenizer=tokenizer(world)), objective=o.Reward())
    events = {event.kind: event.text for event in preftune.Record.open(train(run)).events}
    assert "bfloat16, and become float32" in events["loaded_type"]
    assert "no language model any more" in events["loaded_trunk"]
    assert model.training
