"""No code of a model folder or a hub repository runs, and nobody is asked whether it may."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from making import save_model, save_pairs

from preftune.__main__ import main
from preftune.errors import UserError
from preftune.trust import refuse_code, refuse_hub_code

CANARY = "open({path!r}, 'w').close()\n"


def cached(home: Path, files: dict[str, object], name: str = "some/model") -> Path:
    """A repository of the hub in the cache of this machine."""
    commit, repository = "0" * 40, home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (snapshot / file).write_text(text)
    return snapshot


@pytest.mark.parametrize(("verb", "file"), [("check", "config.json"), ("train", "tokenizer_config.json")])
def test_code_of_a_cached_repository_does_not_run_after_a_yes(
    verb: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a person or a pipe would answer it."""
    snapshot = cached(tmp_path / "hf", {})
    save_model(tmp_path / "plain")
    for path in (tmp_path / "plain").iterdir():
        path.rename(snapshot / path.name)
    save_pairs(tmp_path / "pairs.jsonl", 12)
    (snapshot / "canary.py").write_text(CANARY.format(path=str(tmp_path / "ran")))
    content = json.loads((snapshot / file).read_text())
    if file == "config.json":
        content |= {
            "model_type": "canary",
            "auto_map": {"AutoConfig": "canary.Config", "AutoModelForCausalLM": "canary.M"},
        }
    else:
        content |= {"tokenizer_class": "Canary", "auto_map": {"AutoTokenizer": ["canary.Canary", "canary.Canary"]}}
    (snapshot / file).write_text(json.dumps(content))
    words = ["model.path=some/model", f"data.train={tmp_path / 'pairs.jsonl'}", "reference.path=some/model"]
    words += [f"out={tmp_path / 'run'}"] if verb == "train" else []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("sys.argv", ["preftune", verb, *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exited:
        main()
    written = "".join(capsys.readouterr())
    assert exited.value.code == 2, written
    assert 'asks for code of its own ("auto_map")' in written
    assert "[y/N]" not in written
    assert not (tmp_path / "ran").exists()


HOSTILE = {
    "code deep inside": ({"a": [{"auto_map": {"AutoModel": "x.Y"}}]}, "asks for code"),
    "consent": ({"trust_remote_code": True}, "asks for code"),
    "a list of shards": ({"weight_map": ["model.safetensors"]}, "does not say which file"),
    "null for shards": ({"weight_map": None}, "does not say which file"),
    "no shards": ({}, "does not say which file"),
    "an index that is a list": ([1], "does not say which file"),
    "a file above": ({"weight_map": {"a": "../b.safetensors"}}, "outside of its folder"),
    "a file of no name": ({"weight_map": {"a": ""}}, "outside of its folder"),
    "deep": ("[" * 100_000, "cannot be read"),
    "no JSON": ("{", "cannot be read"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_on_disk_and_in_the_cache(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, reason = HOSTILE[case]
    snapshot = cached(tmp_path, {"config.json": {"model_type": "llama"}, "model.safetensors.index.json": content})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=reason):
        refuse_code(snapshot, "model.path")
    with pytest.raises(UserError, match=reason):
        refuse_hub_code("some/model", None, "model.path")


def test_a_pipe_in_a_model_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="is not an ordinary file"):
        refuse_code(tmp_path, "model.path")


def test_what_is_not_cached_is_left_to_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("some/model", "no such/name", "a/b/c", "gpt2"):
        refuse_hub_code(name, None, "model.path")
    assert not (tmp_path / "hub").exists()  # it asked nobody and wrote nothing
