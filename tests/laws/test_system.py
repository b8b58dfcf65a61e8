"""A default system text is, to the bit, one that is written into every row: in training, samples and draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.cli.draw import draw
from preftune.cli.score import words_of
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.record.reader import Record
from preftune.rows.split import read_rows
from preftune.run.tasks import tasks_from
from preftune.run.train import train

Make = Callable[..., Run]
SYSTEM = "w20 w21"
NAMES = "{% set names = {'system': 'w7', 'user': 'w8', 'assistant': 'w9'} %}"
TURNS = "{% for m in messages %}{{ names[m.role] }} {{ m.content }} </s> {% endfor %}"
OPENS = "{% if add_generation_prompt %}w9 {% endif %}"
TEMPLATES = {
    "drops": TURNS.replace("{{", "{% if m.role != 'system' %}{{", 1).replace("{% endfor", "{% endif %}{% endfor"),
    "refuses": "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS,
}


@pytest.fixture
def conversations(run_of: Make, tmp_path: Path) -> Make:
    (tmp_path / "template.jinja").write_text(NAMES + TURNS + OPENS)

    def make(*before: dict[str, str], **changed: object) -> Run:
        for part, first in (("train", 0), ("held", 30)):
            rows = [
                {
                    "prompt": [*before, {"role": "user", "content": f"w{10 + number % 40}"}],
                    "chosen": [{"role": "assistant", "content": f"w30 w{12 + number % 40}"}],
                    "rejected": [{"role": "assistant", "content": "w40 w41"}],
                }
                for number in range(first, first + 10)
            ]
            (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data__train": str(tmp_path / "train.jsonl"), "data__evaluate": str(tmp_path / "held.jsonl")}
        return run_of(**{"data__template": str(tmp_path / "template.jinja"), "optim__epochs": 1, **files, **changed})

    return make


def test_it_is_as_written_into_the_rows(
    conversations: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = train(conversations({"role": "system", "content": SYSTEM}, out=str(tmp_path / "written")))
    given = train(conversations(data__system=SYSTEM, out=str(tmp_path / "given")))
    for name in ("model/model.safetensors", "samples.json"):
        assert (written / name).read_bytes() == (given / name).read_bytes()
    assert Record.open(written).end["loss"] == Record.open(given).end["loss"]
    capsys.readouterr()
    draw(str(given), tmp_path / "held.jsonl", responses=1, max_tokens=3)
    drawn = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line["prompt"][0] == {"role": "system", "content": SYSTEM} for line in drawn)
    draw(str(given), tmp_path / "held.jsonl", responses=1, max_tokens=3, system="")
    assert all(json.loads(line)["prompt"][0]["role"] == "user" for line in capsys.readouterr().out.splitlines())
    assert f'data.system="{SYSTEM}"' in words_of(["rows.jsonl"], str(given))


def test_tasks_and_what_scores_them_see_it(conversations: Make) -> None:
    keys = {"objective__name": "rloo", "rollout__responses": 2, "rollout__max_tokens": 4, "reward__verify": "exact"}
    run = conversations(data__system=SYSTEM, **keys)
    assert run.rollout is not None
    tasks = tasks_from(run, run.rollout, read_rows(run.data))
    ids = tasks.dataset.tokenizer.convert_tokens_to_ids(["w7", "w20", "w21"])
    for task in (*tasks.train, *tasks.held_out):
        assert task.ids[:3].tolist() == ids
        assert task.prompt[0].content == SYSTEM


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_a_place_for_it_is_refused_once(conversations: Make, tmp_path: Path, name: str) -> None:
    run = conversations(data__system=SYSTEM)
    (tmp_path / "template.jinja").write_text(NAMES + TEMPLATES[name] + OPENS)
    with pytest.raises(UserError, match=r"^data\.system: the chat template") as refused:
        train(run)
    assert len(refused.value.problems) == 1


def test_so_is_a_tokenizer_without_a_template(conversations: Make) -> None:
    with pytest.raises(UserError, match=r"^data\.system: the tokenizer has no chat template"):
        train(conversations(data__system=SYSTEM, data__template=None))
