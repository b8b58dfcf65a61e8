"""What `preftune check` works out: memory of what is trained alone, and errors before any weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import save_model, save_pairs

from preftune.config.load import load
from preftune.errors import UserError
from preftune.rows.split import read_rows
from preftune.run.preview import Preview, preview


@pytest.fixture
def previewed(tmp_path: Path):
    """A preview of a run on a model and rows of its own, with keys changed."""
    words = [f"model.path={save_model(tmp_path / 'm')}", f"data.train={save_pairs(tmp_path / 'p.jsonl', 12)}",
             "device=cpu", "optim.steps=4"]  # fmt: skip

    def make(*changed: str) -> Preview:
        run = load(None, [*words, *changed])
        return preview(run, read_rows(run.data))

    return make


def test_moments_and_gradients_are_of_what_is_trained(previewed) -> None:
    whole, low = previewed(), previewed("model.weights=bfloat16", "optim.state=int8")
    part = previewed('model.trainable=["*.mlp.*"]')
    count = whole.parameters
    assert (whole.memory.weights, whole.memory.gradients, whole.memory.moments) == (4 * count, 4 * count, 8 * count)
    assert (low.memory.weights, low.memory.gradients) == (2 * count, 2 * count)
    assert low.memory.moments == int(count * (2 + 8 / 256))
    of_mlps = 3 * 3 * 32 * 48
    assert (part.memory.weights, part.memory.gradients, part.memory.moments) == (4 * count, 4 * of_mlps, 8 * of_mlps)
    assert f"{of_mlps / count:.2%} of the weights" in part.notes["trainable"][0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ('model.trainable=["*.mpl.*"]', r"no weight of this model fits"),
        ("optim.warmup_steps=4", "of the run's 4 updates 4 would be warm-up"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_weights_are_read(previewed, words: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        previewed(words)
