"""Small training runs whose every number is on record in golden.json, made to prove that a change of the code changed
no result.

    python runs.py write golden.json      do all runs and record what they compute
    python runs.py compare golden.json    do all runs and say for each whether it computes the same bits

The model, its tokenizer and the rows are made here from fixed seeds, and of preftune only `load` and `train` are used,
so that nothing in this file depends on how preftune is built inside.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import contextlib
import hashlib
import json
import math
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed import TCPStore
from torch.multiprocessing import start_processes
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import preftune

# Keys of the configuration as the runs below spell them -> as the present build spells them.
KEYS = {
    "model.tokeniser": "model.tokenizer",
    "reference.share": "reference.alpha",
    "reference.every": "reference.update_every",
}
# Numbers of the record as golden.json spells them -> as the present build spells them; others have kept their names.
METRICS: dict[str, str] = {}
# Numbers that the present build records and golden.json does not have; they are not compared.
ADDED = frozenset({
    "log_ratio_rms", "place", "prompt", "shared_logp_change", "chosen_fork_change", "rejected_fork_change",
    "outside_fork", "outside_fork_change", "chosen_end_logp", "rejected_end_logp", "chosen_end_change",
    "rejected_end_change", "perplexity",
})  # fmt: skip

CLOCKS = {"seconds"}  # wall time, which no two runs share
FILES = ("metrics", "evaluations", "evaluation_rows")
STOPPED = 75  # exit code of a run that was asked to stop and can be resumed
INTERRUPTED_AFTER = 3  # updates done when a run is stopped or killed; its checkpoint, if killed, is one update older
STEPS = 6  # the last one begins a second pass over the rows

Lines = list[dict[str, Any]]
Result = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Golden:
    """One run. words: its configuration, where WORLD stands for the folder of the model and the rows.

    way: "whole", "stopped" or "killed" (in the middle, and resumed), "ranks" (two processes). equals: the run whose
    numbers this one must repeat to the last bit, on any machine. coarse: compared loosely on other machines.
    """

    words: tuple[str, ...]
    way: str = "whole"
    equals: str = ""
    coarse: bool = False


def rows_of(name: str, held_out: bool = True) -> tuple[str, ...]:
    """The words for the rows of one kind, and for held-out rows of the same kind with an evaluation on the way."""
    train = f"data.train=WORLD/{name}.jsonl"
    return (train, f"data.evaluate=WORLD/{name}_held_out.jsonl", "evaluate.every=2") if held_out else (train,)


DPO = (*rows_of("pairs"), "objective=dpo")
SUM = json.dumps({"name": "sum", "parts": [{"name": "dpo", "beta": 0.2}, {"name": "nll"}], "weights": [1.0, 0.3]})
RUNS = {
    "dpo": Golden(DPO),
    "ipo": Golden(
        (*rows_of("pairs", held_out=False), "data.holdout=0.25", "objective=ipo", "model.tokeniser=WORLD/words")
    ),
    "kto": Golden((*rows_of("ratings"), "objective=kto")),
    "bco": Golden((*rows_of("ratings"), "objective=bco")),
    "simpo": Golden((*rows_of("pairs"), "objective=simpo", "objective.gamma_ratio=0.5")),
    "orpo": Golden((*rows_of("pairs"), "objective=orpo", "optim.weight_decay=0.1")),
    "aot": Golden((*rows_of("pairs"), "objective=aot")),
    "beta_dpo": Golden((*rows_of("pairs"), "objective=beta_dpo")),
    "plackett_luce": Golden((*rows_of("rankings"), "objective=plackett_luce")),
    "nll": Golden((*rows_of("demos"), "objective=nll", "objective.norm=token", "optim.schedule=cosine")),
    "votes": Golden((*rows_of("votes"), "objective=dpo", "objective.flip=0.1")),
    "sum": Golden(
        (
            'data.train=["WORLD/pairs.jsonl", "WORLD/demos.jsonl"]',
            "data.evaluate=WORLD/pairs_held_out.jsonl",
            f"objective={SUM}",
        )
    ),
    "token_weights": Golden((*rows_of("weighted_pairs"), "objective=dpo", "aggregate=ld", "aggregate.alpha=0.4")),
    "moving": Golden((*DPO, "reference=moving", "reference.share=0.5", "reference.every=2")),
    "checkpointing": Golden((*DPO, "model.checkpointing=true")),
    "bfloat16": Golden((*DPO, "model.compute=bfloat16"), coarse=True),
    "bfloat16_weights": Golden(
        (*DPO, "model.compute=bfloat16", "model.weights=bfloat16", "optim.state=int8"),
        coarse=True,
    ),
    "two_ranks": Golden(DPO, way="ranks"),
    "killed": Golden((*DPO, "save.every=2"), way="killed", equals="dpo"),
    "stopped": Golden((*DPO, "save.every=2"), way="stopped", equals="dpo"),
    "moving_killed": Golden(
        (*DPO, "reference=moving", "reference.share=0.5", "reference.every=2", "save.every=2"),
        way="killed",
        equals="moving",
    ),
}
USUAL = (
    "model.path=WORLD/model",
    "batch.rows=6",
    "batch.tokens=60",  # several packs an update, and nothing that depends on the memory of the machine
    "optim.lr=1e-3",
    f"optim.steps={STEPS}",
    "device=cpu",
    "seed=3",
)


# --- the world: a model, a tokenizer and rows --------------------

NOUNS = ["garden", "letter", "window", "bicycle", "kitchen", "story", "song", "bridge", "river", "lamp", "boat"]
VERBS = ["mend", "paint", "write", "clean", "build", "move", "sell", "find", "open", "draw"]
HOW = ["slowly", "gently", "twice", "today", "together", "outside", "first", "alone", "carefully", "again"]
KIND = ["you", "can", "please", "try", "to", "it", "helps", "if", "we"]
CURT = ["no", "never", "i", "will", "not", "that", "is", "dull", "whatever"]
ASKED = ["Question", ":", "how", "do", "people", "what", "the", "a", "old", "new", "my", "?", "Answer", "."]
WORDS = sorted({*NOUNS, *VERBS, *HOW, *KIND, *CURT, *ASKED})
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2}


def make_world(folder: Path) -> Path:
    """Write the model, its tokenizer and the rows of every kind; the same bytes whenever and wherever it is called."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    make_model(folder / "model")
    make_tokenizer(folder / "words")
    for seed, kind in enumerate((pair, rating, ranking, demo, votes, weighted_pair)):
        name = "votes" if kind is votes else f"{kind.__name__}s"
        for part, count in (("", 30), ("_held_out", 10)):
            draw = np.random.RandomState(100 * seed + (7 if part else 0))
            prompts = [prompt(draw) for _ in range(count // 3)]  # each of them serves several rows
            rows = [{"id": f"{name}{part} {i}", "prompt": pick(draw, prompts), **kind(draw)} for i in range(count)]
            (folder / f"{name}{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_tokenizer(folder: Path) -> None:
    """One token a word."""
    words = {**SPECIAL, **{word: i for i, word in enumerate(WORDS, len(SPECIAL))}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def make_model(folder: Path) -> None:
    """A random Llama of two layers; its weights are drawn here, because libraries change how they begin."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        pad_token_id=SPECIAL["<pad>"],
        bos_token_id=SPECIAL["<s>"],
        eos_token_id=SPECIAL["</s>"],
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    draw = np.random.RandomState(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            drawn = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)).astype(np.float32))
            parameter.copy_(1 + 0.1 * drawn if parameter.dim() == 1 else 0.3 * drawn)
    model.save_pretrained(folder)
    make_tokenizer(folder)


def pick(draw: np.random.RandomState, words: Sequence[T]) -> T:
    """One of them."""
    return words[draw.randint(len(words))]


def prompt(draw: np.random.RandomState) -> str:
    """A question; all of them begin alike."""
    return (
        f"Question : how do people {pick(draw, VERBS)} the {pick(draw, ['old', 'new'])} {pick(draw, NOUNS)} ? Answer :"
    )


def answer(draw: np.random.RandomState, tone: list[str]) -> str:
    """Some words of one tone and some that either tone has."""
    said = [pick(draw, tone) for _ in range(draw.randint(1, 5))]
    said += [pick(draw, pick(draw, [VERBS, HOW, NOUNS])) for _ in range(draw.randint(1, 5))]
    return f" {' '.join(said)} ."


def pair(draw: np.random.RandomState) -> dict[str, Any]:
    """Two responses, which now and then begin with the same words."""
    start = f" {pick(draw, HOW)}" if draw.randint(3) == 0 else ""
    return {"chosen": start + answer(draw, KIND), "rejected": start + answer(draw, CURT)}


def rating(draw: np.random.RandomState) -> dict[str, Any]:
    """One response, good or bad; there are fewer good ones."""
    good = bool(draw.randint(5) < 2)
    return {"completion": answer(draw, KIND if good else CURT), "label": good}


def ranking(draw: np.random.RandomState) -> dict[str, Any]:
    """Four responses; the second and the third are sometimes as good as each other."""
    tones = (KIND, KIND + CURT, KIND + CURT, CURT)
    return {"responses": [answer(draw, tone) for tone in tones], "ranks": [1, 2, 2 + draw.randint(2), 4]}


def demo(draw: np.random.RandomState) -> dict[str, Any]:
    """A response to imitate."""
    return {"completion": answer(draw, KIND)}


def votes(draw: np.random.RandomState) -> dict[str, Any]:
    """Two responses and how many people chose each: a soft label."""
    sides = {"response_a": answer(draw, KIND), "response_b": answer(draw, CURT)}
    return {**sides, "votes_a": 2 + draw.randint(4), "votes_b": draw.randint(4)}


def weighted_pair(draw: np.random.RandomState) -> dict[str, Any]:
    """A pair that says what its tokens count: the chosen by spans of characters, every second rejected by token."""
    made = pair(draw)
    middle = made["chosen"].index(" ", 1)
    made["chosen_token_weights"] = [[1, middle, 0.5], [middle + 1, len(made["chosen"]), 1.5]]
    if draw.randint(2):
        count = len(made["rejected"].split()) + 1  # and the end token
        made["rejected_token_weights"] = [round(0.5 + 0.25 * draw.randint(5), 2) for _ in range(count)]
    return made


# --- the runner --------------------


def do(name: str, world: Path, folder: Path) -> Result:
    """Do one run in an empty folder and return what it computed."""
    torch.set_num_threads(1)
    golden, out = RUNS[name], folder / "run"
    run = preftune.load(None, [spelled(word, world) for word in (*USUAL, *golden.words, f"out={out}")])
    with reference_store(folder / "store"):
        if golden.way == "ranks":
            on_two_ranks(lambda: preftune.train(run))
        elif golden.way in INTERRUPTIONS:
            interrupt(lambda: preftune.train(run), golden.way)
            assert any((out / "checkpoints").iterdir()), "it was interrupted before its first checkpoint"
            assert not (out / "model").exists(), "it was done before it was interrupted"
            preftune.train(run, resume=True)
        else:
            preftune.train(run)
    return read(out, world)


def spelled(word: str, world: Path) -> str:
    """A word of the configuration as the present build has it."""
    key, _, value = word.partition("=")
    return f"{KEYS.get(key, key)}={value.replace('WORLD', str(world))}"


@contextlib.contextmanager
def reference_store(folder: Path) -> Iterator[None]:
    """A store of its own for each run: what another run has left there was computed in other packs."""
    before = os.environ.get("PREFTUNE_STORE")
    os.environ["PREFTUNE_STORE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PREFTUNE_STORE"]
        else:
            os.environ["PREFTUNE_STORE"] = before


def on_two_ranks(work: Callable[[], object]) -> None:
    """Do it in two processes, which find each other as torchrun would have them; forked, which saves their start."""
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    start_processes(_rank, (meeting.port, work), nprocs=2, start_method="fork")


def _rank(index: int, port: int, work: Callable[[], object]) -> None:
    told = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
    os.environ.update({key: str(value) for key, value in told.items()})
    work()


INTERRUPTIONS = {"killed": (signal.SIGKILL, -signal.SIGKILL), "stopped": (signal.SIGTERM, STOPPED)}


def interrupt(work: Callable[[], object], way: str) -> None:
    """Do it in a child that signals itself: a kill as update 4 begins, a request to stop as update 3 ends."""
    number, expected = INTERRUPTIONS[way]
    done = 0

    def before(*_: object) -> None:
        if done == INTERRUPTED_AFTER and way == "killed":
            os.kill(os.getpid(), number)

    def after(*_: object) -> None:
        nonlocal done
        done += 1
        if done == INTERRUPTED_AFTER and way == "stopped":
            os.kill(os.getpid(), number)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            register_optimizer_step_pre_hook(before)
            register_optimizer_step_post_hook(after)
            work()
            code = 0
        except preftune.UserError as error:
            code = error.code
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended == expected, f"the run to be {way} ended with {ended}, not {expected}"


def read(out: Path, world: Path) -> Result:
    """What a run computed: the digest of its weights, how far each moved, and every number of its record."""
    weights, start = weights_of(out / "model"), weights_of(world / "model")
    moved = {name: float((value.double() - start[name].double()).norm()) for name, value in weights.items()}
    return {"weights": digest(weights), "moved": moved, **{name: lines(out / f"{name}.jsonl") for name in FILES}}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an exported model, in the order of their names."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return dict(sorted(found.items()))


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    told = hashlib.sha256()
    for name, value in weights.items():
        told.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        told.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def lines(file: Path) -> Lines:
    """The lines of a file of the record, with the names of golden.json and without clocks."""
    old = {new: old for old, new in METRICS.items()}
    told: Lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [
        {old.get(k, k): v for k, v in line.items() if old.get(k, k) not in CLOCKS and k not in ADDED} for line in told
    ]


# --- what is recorded, and the comparison --------------------


def facts() -> dict[str, str]:
    """All outside of preftune on which the bits depend; where they differ only rounding may."""
    return {
        "torch": version("torch"),
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": cpu(),
    }


def cpu() -> str:
    """The processor's name, model numbers and the extensions by which libraries choose their kernels."""
    try:
        told = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in told.splitlines())}
    numbers = [found.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    flags = sorted(flag for flag in found.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    return " ".join([*numbers, *flags]).strip()


def made(world: Path) -> str:
    """SHA-256 of the model and of all rows: where it differs, nothing else can be the same."""
    told = hashlib.sha256(digest(weights_of(world / "model")).encode())
    for file in sorted(world.glob("*.jsonl")):
        told.update(file.name.encode() + file.read_bytes())
    return told.hexdigest()


def differences(found: Result, recorded: Result) -> tuple[list[str], dict[str, tuple[float, float, bool]]]:
    """What differs other than by size, in sentences; and of each number that differs the largest relative difference,
    the absolute one that belongs to it, and whether all of its values are close."""
    return _differences(found, recorded, 0.0, 0.0)


def _differences(
    found: Result, recorded: Result, rtol: float, atol: float
) -> tuple[list[str], dict[str, tuple[float, float, bool]]]:
    sentences: list[str] = []
    numbers: dict[str, tuple[float, float, bool]] = {}

    def look(place: str, metric: str, a: Any, b: Any) -> None:
        if a == b and type(a) is type(b):
            return
        if {type(a), type(b)} == {float, type(None)}:  # what cannot be told in one of them
            numbers[metric] = (math.inf, math.inf, False)
            return
        both = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (a, b))
        if not both:
            sentences.append(f"{place} {metric}: {a!r}, recorded {b!r}")
            return
        off = abs(a - b)
        size = off / max(abs(a), abs(b)) if off else 0.0
        before = numbers.get(metric, (0.0, 0.0, True))
        numbers[metric] = (*max(before[:2], (size, off)), before[2] and off <= atol + rtol * abs(b))

    for name in sorted(found["moved"].keys() | recorded["moved"].keys()):
        look("weights", f"moved {name}", found["moved"].get(name), recorded["moved"].get(name))
    for file in FILES:
        if len(found[file]) != len(recorded[file]):
            sentences.append(f"{file}: {len(found[file])} lines, recorded {len(recorded[file])}")
            continue
        for at, (a, b) in enumerate(zip(found[file], recorded[file], strict=True), 1):
            for key in sorted(b.keys()):  # a number that later versions measure besides changes none of these
                look(f"{file} {at}", f"{file} {key}", a.get(key, "nothing"), b.get(key, "nothing"))
    return sentences, numbers


def problems(
    found: Result,
    recorded: Result,
    *,
    exact: bool,
    rtol: float = 0.0,
    atol: float = 0.0,
    but: tuple[str, ...] = (),
) -> list[str]:
    """Why these are not the numbers on record, or nothing. exact: to the last bit; else within rtol and atol, numbers
    that have a word of `but` in their names aside."""
    sentences, numbers = _differences(found, recorded, rtol, atol)
    if exact and found["weights"] != recorded["weights"]:
        sentences.insert(0, "the final weights are other bits")
    wrong = [
        (name, size, off)
        for name, (size, off, close) in numbers.items()
        if exact or not (close or any(word in name for word in but))
    ]
    return sentences + [f"{name}: off by up to {size:.2e} of itself, {off:.2e}" for name, size, off in wrong]


def write(file: Path) -> None:
    """Do all runs and record them, one line a step so that the file can be read."""
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "world")
        results = {}
        for name in RUNS:
            began = time.monotonic()
            results[name] = do(name, world, Path(folder) / name)
            print(f"{name}: {results[name]['weights'][:16]} ({time.monotonic() - began:.1f} s)")
        head = {"facts": facts(), "made": made(world)}
    repeated = [name for name, golden in RUNS.items() if golden.equals and results[name] != results[golden.equals]]
    assert not repeated, f"interrupted and resumed, and not as if never interrupted: {repeated}"
    file.write_text(text({**head, "runs": results}) + "\n")


def text(value: Any, depth: int = 0) -> str:
    """JSON with a line for each table that holds no other; Python writes floats so that the same bits are read."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(one, dict | list) for one in inner):
        return json.dumps(value, allow_nan=False)
    margin, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        told = [f"{margin}{json.dumps(key)}: {text(one, depth + 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(told) + f"\n{end}}}"
    return "[\n" + ",\n".join(margin + text(one, depth + 1) for one in value) + f"\n{end}]"


def compare(file: Path) -> int:
    """Do all runs, say of each how it compares with the record, and return how many are not the same bits."""
    recorded, others, results = json.loads(file.read_text()), 0, {}
    now = facts()
    for key, before in recorded["facts"].items():
        if now.get(key) != before:
            print(f"this machine has another {key}: {now.get(key)}, recorded {before}; bits may differ for this reason")
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "world")
        if made(world) != recorded["made"]:
            print("the model or the rows made here are not those of the record, so all numbers will differ")
        for name in sorted(RUNS.keys() | recorded["runs"].keys(), key=[*RUNS, *recorded["runs"]].index):
            if name not in RUNS or name not in recorded["runs"]:
                print(f"{name}: only {'here' if name in RUNS else 'in the record'}")
                others += 1
                continue
            results[name] = found = do(name, world, Path(folder) / name)
            others += not _say(name, found, recorded["runs"][name])
            same = RUNS[name].equals
            if same and found != results[same]:
                print(f"{name}: resumed, and not the same bits as {same}, which was never interrupted")
                others += 1
    print("all runs: same bits" if not others else f"{others} findings")
    return others


def _say(name: str, found: Result, recorded: Result) -> bool:
    sentences, numbers = differences(found, recorded)
    equal = found["weights"] == recorded["weights"]
    if equal and not sentences and not numbers:
        print(f"{name}: same bits")
        return True
    print(f"{name}: other bits; final weights {'equal' if equal else 'differ'}")
    for sentence in sentences:
        print(f"    {sentence}")
    for metric, (size, off, _) in sorted(numbers.items(), key=lambda one: -one[1][0]):
        print(f"    {metric}: largest relative difference {size:.2e} (absolute {off:.2e})")
    return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record what small runs compute, or compare with such a record.")
    parser.add_argument("verb", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    print(f"preftune of {Path(preftune.__file__).parent}")
    if asked.verb == "write":
        write(asked.file)
        return 0
    return 1 if compare(asked.file) else 0


if __name__ == "__main__":
    sys.exit(main())
