"""One configuration, whatever form it is written in; an error names the key and the nearest right one."""

from __future__ import annotations

import re
import tomllib
from inspect import getdoc, signature
from pathlib import Path

import msgspec
import pytest

from preftune.config.explain import keys, schema
from preftune.config.load import convert, dump, load
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.objective import DPO, IPO, NLL, Sum
from preftune.reference.config import Moving
from preftune.rows.config import Data
from preftune.table import flatten

TOML = 'seed = 3\n[model]\npath = "m"\n[objective]\nname = "dpo"\nbeta = 0.2\n[optim]\nlr = 1e-6\n'
YAML = "seed: 3\nmodel: {path: m}\nobjective: {name: dpo, beta: 0.2}\noptim:\n  lr: 1e-6\n"
JSON = '{"seed": 3, "model": {"path": "m"}, "objective": {"name": "dpo", "beta": 0.2}, "optim": {"lr": 1e-6}}'


@pytest.mark.parametrize(("name", "text"), [("r.toml", TOML), ("r.yaml", YAML), ("r.yml", YAML), ("r.json", JSON)])
def test_three_forms_one_run(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    words = ["seed=3", "model.path=m", "objective.beta=0.2", "optim.lr=1e-6"]
    assert load(tmp_path / name) == load(None, words)
    assert load(tmp_path / name).optim.lr == 1e-6


def test_none_is_a_word_where_the_key_has_it_and_nothing_elsewhere() -> None:
    run = load(None, ["ranks.shard=none", "optim.epochs=none"])
    assert (run.ranks.shard, run.optim.epochs) == ("none", None)


def test_no_word_undoes_another() -> None:
    for name in ("objective=ipo", "objective.name=ipo", 'objective={"name": "ipo"}'):
        assert load(None, ["objective.tau=0.3", name]).objective == IPO(tau=0.3)
        with pytest.raises(UserError, match=r"objective\.beta: there is no such key"):
            load(None, ["objective.beta=0.3", name])
    assert load(None, ["optim.lr=0.3", 'optim={"epochs": 2}']).optim.lr == 0.3


def test_words_win_and_a_new_choice_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(TOML)
    run = load(tmp_path / "r.toml", ["optim.lr=2e-6", "reference=moving", "objective=ipo", "objective.tau=0.2"])
    assert run.optim.lr == 2e-6
    assert isinstance(run.reference, Moving)
    assert msgspec.to_builtins(run.objective)["name"] == "ipo"
    assert load(tmp_path / "r.toml", ["objective=dpo"]).objective == load(tmp_path / "r.toml").objective


def test_a_word_names_no_key_of_a_list_of_tables(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[[reward]]\nverify = "exact"\n')
    with pytest.raises(UserError, match="reward is a list of tables, which a word replaces whole, and has no key"):
        load(tmp_path / "r.toml", ["reward.weight=2"])


def test_the_whole_run_survives_its_own_file(tmp_path: Path) -> None:
    run = load(None, ["model.path=m", "reference=stored", "optim.steps=7", 'data.train=["a", "b"]', "data.holdout=0.1"])
    (tmp_path / "r.toml").write_text(dump(run))
    assert load(tmp_path / "r.toml") == run


WRONG = {
    "objective.bta=1": ["objective.bta", 'Did you mean "beta"'],
    "optm.lr=1": ["optm", 'Did you mean "optim"'],
    "objective=dpoo": ["objective.name", '"dpoo"', '"dpo"'],
    "reference=storedd": ["reference.kind", '"stored"'],
    "model.layout=tree": ["model.layout", '"trie"'],
    "optim.lr=-1": ["optim.lr", "a number > 0"],
    "optim.lr=fast": ["optim.lr", "must be a number, got text"],
    "batch.rows=1.5": ["batch.rows", "whole number"],
    "batch.rows=0": ["batch.rows", ">= 1"],
    "data.holdout=1": ["data.holdout", "< 1"],
    "objective.beta=0": ["objective.beta", "> 0"],
    "seed.a=1": ["seed"],
    "whatever": ["whatever", "key=value"],
    "seed=99999999999999999999": ["seed"],
    "objective=dop": ["objective.name", 'Did you mean "dpo"'],
    "objective=DPO": ["objective.name", 'Did you mean "dpo"'],
    'objective={name="sum", parts=[{name="dop"}]}': ["objective.parts[0].name", 'Did you mean "dpo"'],
    "objective=sigmoid": ["Write objective=dpo."],
    "objective=regularised_dpo": ['Did you mean "regularized_dpo"'],
    "reference=frozen": ["gives the same numbers", 'reference.store = "memory"'],
    "objective=": ["objective.name", '"" is not one of them', "dpo"],
    ".=1": ["there is no such key", "Known here: model"],
    "model=m": ["model: must be a table, got text. Write model.path"],
    "optim.betas=[0.9, 1.5]": ["optim.betas", "< 1"],
    "objective.tau=1": ['Known here: beta, flip. It is a key of name = "ipo" or'],
    'reference={kind="moving", path="m"}': ['Known here: alpha, update_every. It is a key of kind = "stored".'],
    'objective={name="ipo", flip=0.1}': ["no such key. Known here: tau, per_token"],
    "objective.parts=[]": ['It is a key of name = "sum".'],
    "objective.beta=1e999": ["objective.beta: must be a finite number"],
    "data.share=[1]": ['Did you mean "shares"'],  # share is an earlier name in another table
    "optim.beta=[0.9, 0.99]": ['Did you mean "betas"'],
}


ELSEWHERE = {
    "model.tokeniser": "model.tokenizer", "reference.share": "reference.alpha of reference=moving",
    "reference.every": "reference.update_every of reference=moving", "learning_rate": "optim.lr",
    "optim.learning_rate": "optim.lr", "gamma": "objective.gamma or aggregate.gamma",
    "per_device_train_batch_size": "batch.rows", "gradient_accumulation_steps": "batch.rows",
    "num_train_epochs": "optim.epochs", "max_steps": "optim.steps", "warmup_ratio": "optim.warmup",
    "lr_scheduler_type": "optim.schedule", "max_length": "data.max_tokens", "beta": "objective.beta",
    "loss_type": "objective", "output_dir": "out", "model_name_or_path": "model.path",
    "ref_model": "reference.path of reference=stored",
    "gradient_checkpointing": "model.checkpointing", "bf16": "model.compute",
    "eval_strategy": "evaluate.every", "save_steps": "save.every", "eval-steps": "evaluate.every",
}  # fmt: skip


@pytest.mark.parametrize("word", ELSEWHERE)
def test_other_names_of_a_key_are_answered_with_ours(word: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{word}: there is no such key. Here it is {ELSEWHERE[word]}.")):
        load(None, [f"{word}=1"])


def test_a_name_elsewhere_belongs_to_one_key_and_is_no_name_here() -> None:
    names = [(name, key.path) for key in keys() for name in key.also]
    assert len(dict(names)) == len(set(names))
    assert not {name for name, _ in names} & {key.name for key in keys()}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_keys_are_named_with_the_mend(word: str) -> None:
    with pytest.raises(UserError) as raised:
        load(None, [word])
    assert raised.value.code == 2
    for part in WRONG[word]:
        assert part in str(raised.value)


BROKEN = [
    ("r.toml", b"seed = 1\nseed = 2\n", "r.toml: is not valid TOML"),
    ("r.toml", b"seed = = 1", "r.toml: is not valid TOML"),
    ("r.toml", b"seed = 1\n\xff", "r.toml: is not UTF-8 text: byte 10"),
    ("r.toml", b"[optim]\nclip = inf\n", "r.toml: optim.clip: must be a finite number"),
    ("r.toml", b"a = " + b"[" * 900 + b"]" * 900, "r.toml"),
    ("r.yaml", b"a: &x [1]\nb: *x", "r.yaml: is not valid YAML: aliases are not allowed"),
    ("r.yaml", b"!!python/object:os.x {}", "r.yaml: is not valid YAML"),
    ("r.yaml", b"a: [\n\x1b: x\n", "is not valid YAML"),
    ("r.yaml", b"- 1", "r.yaml: does not hold keys and values"),
    ("r.yaml", b"seed: 1\nseed: 2\n", 'the key "seed" stands there twice'),
    ("r.yaml", b"optim: {lr: 1.0, lr: 2.0}\n", 'the key "lr" stands there twice'),
    ("r.yaml", b"seed: 1:20\n", "seed: must be a whole number, got text"),  # to the base of 60
    ("r.yaml", b"optim: {lr: 1:20.5}\n", "optim.lr: must be a number, got text"),
    ("r.yaml", b"a: " + b"[" * 900 + b"]" * 900, "r.yaml"),
    ("r.json", b"[1]", "r.json: does not hold keys and values"),
    ("r.json", b"[" * 100_000, "r.json: is not valid JSON"),
    ("r.json", b'{"seed": 1, "seed": 2}', 'the key "seed" stands there twice'),
    ("r.json", b'{"optim": {"lr": 1e-6, "lr": 1e-5}}', 'the key "lr" stands there twice'),
    ("r.json", b'{"data": {"train": "a\\u0000b"}}', "data.train: holds a zero character"),
    ("r.json", b'{"data": {"train": ["\\udfff"]}}', "data.train: holds a zero character"),
    ("r.json", b'{"out": "\\ud800"}', "out: holds a zero character or half of one"),
    ("r.json", b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}", "data: values are nested too deeply"),
    ("r.json", b'{"a": ' * 900 + b"1" + b"}" * 900, "a: values are nested too deeply"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files_are_one_error_and_no_file_is_half_read(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        load(tmp_path / name)
    assert sentence in str(raised.value)
    assert raised.value.code == 2
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(UserError, match=r'Did you mean "run\.toml"'):
        load(tmp_path / "rum.toml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_every_key_says_what_it_means() -> None:
    named = keys()
    assert [key.name for key in named if not key.meaning] == []
    top = {name.partition(".")[0] for name in flatten(msgspec.to_builtins(Run()))}
    assert top <= {key.name.partition(".")[0] for key in named}
    assert schema()["$defs"]["Optim"]["properties"]["lr"]["description"]


@pytest.mark.parametrize("parts", ['[{name="dpo"},{name="nll"}]', '[{"name": "dpo"}, {"name": "nll"}]'])
def test_a_word_may_hold_what_a_file_holds(parts: str) -> None:
    assert load(None, ["objective=sum", f"objective.parts={parts}"]).objective == Sum(parts=(DPO(), NLL()))
    assert load(None, ['objective={name="ipo", tau=0.2}']).objective == IPO(tau=0.2)


def test_a_word_with_a_second_line_is_not_half_read() -> None:
    with pytest.raises(UserError, match=r"optim\.betas: must be a list, got text"):
        load(None, ["optim.betas=[0.9, 0.99]\nlr = 1"])


FILES = (
    'objective = "dpo"', 'objective = "mpo"', 'reference = "moving"', 'aggregate = "ld"',
    '[objective]\nname = "mpo"', "[objective]\nbeta = 0.2", '[reference]\npath = "m"',
    '[objective]\nname = "sum"\nparts = [{ name = "dpo" }]',
    'objective = "dop"', "[objective]\ntau = 0.2", '[objective]\nname = "mpo"\nbeta = 1', 'reference = "no"',
)  # fmt: skip


@pytest.mark.parametrize("text", FILES)
def test_the_schema_takes_what_a_file_may_hold(text: str, tmp_path: Path) -> None:
    import jsonschema

    (tmp_path / "r.toml").write_text(text)
    try:
        good = bool(load(tmp_path / "r.toml"))
    except UserError:
        good = False
    assert jsonschema.Draft202012Validator(schema()).is_valid(tomllib.loads(text)) is good


def test_the_schema_names_the_short_forms() -> None:
    shown = schema()["$defs"]["Run"]["properties"]
    assert {"dpo", "sum", "mpo"} <= set(shown["objective"]["anyOf"][0]["enum"])
    assert shown["reference"]["anyOf"][0]["enum"] == ["stored", "moving", "none"]
    assert shown["reference"]["description"]


def test_sft_is_nll_with_its_keys() -> None:
    assert load(None, ["objective=sft"]).objective == NLL()
    assert load(None, ["objective=sft", "objective.norm=token"]).objective == NLL(norm="token")
    assert 'name = "nll"' in dump(load(None, ["objective=sft"]))
    with pytest.raises(UserError, match="which is a sum"):
        load(None, ["objective=mpo", "objective.beta=1"])


def test_sft_may_be_a_part_of_a_sum() -> None:
    words = ['objective={"name":"sum","parts":[{"name":"dpo"},{"name":"sft","norm":"sum"}],"weights":[1,0.1]}']
    assert load(None, words).objective == Sum(parts=(DPO(), NLL(norm="sum")), weights=(1.0, 0.1))


def test_help_on_a_table_says_what_its_keys_mean() -> None:
    assert str(signature(Data)).startswith("(*, train='', shares=None, evaluate=None, holdout=0.0, columns={}")
    assert "max_tokens: Longest prompt with one response" in str(getdoc(Data))
    assert str(signature(DPO)) == "(*, beta=0.1, flip=0.0)"
    assert "flip: Share of the labels" in str(getdoc(DPO))
    assert str(getdoc(DPO)).startswith("Direct preference optimization")


def test_all_that_is_wrong_is_named_at_once() -> None:
    tree = {"optim": {"lrr": 1, "lr": "x"}, "learning_rate": 1, "batch": {"row": 3}}
    with pytest.raises(UserError) as caught:
        convert(tree, "run.toml")
    places = [problem.location.removeprefix("run.toml: ") for problem in caught.value.problems]
    assert sorted(places) == ["batch.row", "learning_rate", "optim.lr", "optim.lrr"]
    assert tree["batch"] == {"row": 3}


@pytest.mark.parametrize("name", ["a.b", "parts[0]", ""])
def test_a_strange_name_of_a_key_ends_too(name: str) -> None:
    with pytest.raises(UserError, match="there is no such key"):
        convert({name: 1, "b": 2})
