"""Names of other trainers are answered with ours: each that the page lists, and what Python gives in their forms."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from making import tiny

from preftune import Adapter, Evaluate, Model, Optim, Run, UserError
from preftune.config.explain import keys
from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.elsewhere import ANSWERS, BY_NAME
from preftune.objective import DPO, NLL, Sum

PAGE = (Path(__file__).parents[2] / "docs" / "from_other_trainers.md").read_text()
ROW = re.compile(r"^\| (`.*?`) \| (.*) \|$", re.M)


def listed(title: str) -> list[tuple[str, str]]:
    """Each name in a part of the page with its answer."""
    part = PAGE.partition(f"<!-- {title}: begin")[2].partition(f"<!-- {title}: end")[0]
    rows = [(re.findall(r"`([^`]*)`", there), html.unescape(here)) for there, here in ROW.findall(part)]
    assert rows
    return [(name, here) for names, here in rows for name in names]


def refused(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        load(None, words)
    assert raised.value.code == 2
    return str(raised.value)


def test_each_name_of_a_key_on_the_page_is_answered_with_what_stands_there() -> None:
    for name, here in listed("keys"):
        answer = re.sub(r"^`(.*?)`\.", r"Here it is \1.", here)
        assert refused(f"{name}=1") == f"{name}: there is no such key. {answer}"


def test_each_value_on_the_page_is_answered_with_what_stands_there() -> None:
    for words, here in listed("values"):
        assert refused(*words.split()).endswith(here), words


def test_each_name_without_a_key_on_the_page_is_answered_with_what_stands_there() -> None:
    for name, here in listed("no key"):
        assert refused(f"{name}=1") == f"{name}: there is no such key. {here}"
        assert refused(f"optim.{name}=1").endswith(here)


def test_a_name_has_one_answer() -> None:
    assert len(BY_NAME) == sum(len(names.split()) for names in ANSWERS)
    assert not BY_NAME.keys() & {name for key in keys() for name in key.also}
    assert not BY_NAME.keys() & {step for key in keys() for step in key.name.split(".")}


SAID = {
    "rpo_alpha": "objective=irpo", "use_weighting": "objective=wpo", "cpo_alpha": "objective.nll_weight",
    "loss_weights": "objective.weights of objective=sum", "ld_alpha": "aggregate.alpha of aggregate=ld",
    "sync_ref_model": "reference=moving", "fp16": "model.compute", "packing": "without padding",
    "desirable_weight": "objective.good_weight of objective=kto", "pref_beta": "objective.beta",
    "gradient_accumulation_steps": "times accumulation steps times GPUs",
    "max_prompt_length": "no limit", "use_peft": "adapter.rank=16", "lora_dropout": "no dropout",
    "resume_from_checkpoint": "--resume", "logging_steps": "metrics.jsonl", "hub_model_id": "Nothing is uploaded",
    "adapter.lora_dropout": "no dropout", "model.trust_remote_code": "never run", "trl.beta": "[rollout]",
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_the_usual_names_are_here(name: str) -> None:
    assert SAID[name] in refused(f"{name}=1")


def test_a_sum_with_the_weights_of_rpo_is_written_as_its_answer_says() -> None:
    words = re.findall(r"objective\S*=\S+[^.,\s]", BY_NAME["rpo_alpha"].replace("ALPHA", "0.2"))
    assert load(None, words[1:]).objective == Sum(parts=(DPO(), NLL()), weights=(1, 0.2))


@pytest.mark.parametrize(
    ("table", "name", "answer"),
    [
        (Run, "gradient_accumulation_steps", "Here it is rows of Batch."),
        (Run, "lr", "Here it is lr of Optim or lr of Value."),
        (Run, "loss_type", "Here it is objective."),
        (Optim, "save_steps", "Here it is every of Save."),
        (Optim, "push_to_hub", BY_NAME["push_to_hub"]),
        (Adapter, "lora_dropout", BY_NAME["lora_dropout"]),
        (Evaluate, "evry", 'Did you mean "every"?'),
    ],
)
def test_tables_made_in_python_answer_alike(table: type, name: str, answer: str) -> None:
    with pytest.raises(UserError) as raised:
        table(**{name: 1})
    assert str(raised.value) == f"{table.__name__} has no {name}. {answer}"


def test_an_adapter_of_peft_is_answered_with_the_same_one_here() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=True, lora_dropout=0.1)
    with pytest.raises(UserError, match="adapter: cannot be of type LoraConfig") as raised:
        resolve(Run(adapter=config))
    words = "Adapter(rank=4, alpha=8, targets=('q_proj',), scaling='root')"
    assert str(raised.value).endswith(f"Write {words}. There is no lora_dropout here.")
    assert resolve(Run(adapter=Adapter(rank=4, alpha=8, targets=("q_proj",), scaling="root"))).adapter is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's, of transformers
def test_a_model_inside_of_peft_is_answered_with_its_two_parts() -> None:
    peft = pytest.importorskip("peft")
    around = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"model\.path: .*Save it .* and write Model\(path=BASE\) and Adapter\(path="):
        resolve(Run(model=Model(path=around)))
