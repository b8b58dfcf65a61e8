"""Head and log-softmax in one pass, held to the plain formula."""

from __future__ import annotations

import pytest
import torch

from preftune.model import logp as module
from preftune.model.heads import LanguageHead
from preftune.model.logp import head_logp, head_logp_and_squares


@pytest.mark.parametrize("mode", ["kept", "recomputed", "frozen"])
@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.5, None, True), (2.0, 3.0, True)])
def test_value_and_gradient(
    mode: str, scale: float, softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", {"cpu": 1})
    monkeypatch.setattr(module, "LEAST", (256, 7))
    monkeypatch.setattr(module, "KEEP", {"cpu": 2**30 if mode == "kept" else 0})
    torch.manual_seed(0)
    trained = mode != "frozen"
    hidden = torch.randn(600, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 8, dtype=torch.float64, requires_grad=trained)
    shift = torch.randn(40, dtype=torch.float64, requires_grad=trained) if bias else None
    target, upstream = torch.randint(0, 40, (600,)), torch.randn(600, dtype=torch.float64)
    logits = scale * (hidden @ weight.T + (0 if shift is None else shift))
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]
    logp = head_logp(hidden, LanguageHead(weight, shift, scale, softcap), target)
    assert torch.allclose(logp, expected, atol=1e-13, rtol=0)
    inputs = [t for t in (hidden, weight, shift) if t is not None and t.requires_grad]
    for a, b in zip(
        torch.autograd.grad(logp, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12, rtol=1e-12)


def test_a_frozen_matrix_gets_no_gradient_from_a_bias_that_learns() -> None:
    hidden, weight = torch.randn(9, 8), torch.nn.Parameter(torch.randn(30, 8), requires_grad=False)
    bias, target = torch.zeros(30, requires_grad=True), torch.arange(9)
    head_logp(hidden, LanguageHead(weight, bias, in_place=True), target).sum().backward()
    assert weight.grad is None
    assert bias.grad is not None
    assert torch.allclose(bias.grad[:9].sum() + bias.grad[9:].sum(), torch.tensor(0.0), atol=1e-5)


def test_squares() -> None:
    torch.manual_seed(1)
    hidden, weight, target = torch.randn(9, 8), torch.randn(30, 8), torch.randint(0, 30, (9,))
    probs = torch.softmax(hidden @ weight.T, -1)
    logp, squares = head_logp_and_squares(hidden, LanguageHead(weight), target)
    assert torch.equal(logp, head_logp(hidden, LanguageHead(weight), target))
    assert torch.allclose(squares, (probs**2).sum(-1).log(), atol=1e-5)


def test_half_precision_inputs_give_full_precision_sums() -> None:
    torch.manual_seed(2)
    hidden, weight, target = torch.randn(300, 16), torch.randn(500, 16), torch.randint(0, 500, (300,))
    logp = head_logp(hidden.bfloat16(), LanguageHead(weight.bfloat16()), target)
    assert logp.dtype == torch.float32
    assert float((logp - head_logp(hidden, LanguageHead(weight), target)).abs().max()) < 0.15


@pytest.mark.parametrize("device", ["with a wait", "without"])
@pytest.mark.parametrize("softcap", [None, 200.0])
def test_a_token_that_is_hardly_ever_said(device: str, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its probability is 0 in fp32; a device that must not be waited for gets its logarithm another way."""
    monkeypatch.setattr(module, "WAITS", ("cpu",) if device == "with a wait" else ())
    torch.manual_seed(3)
    hidden, weight, target = torch.randn(20, 8), 12 * torch.randn(50, 8), torch.randint(0, 50, (20,))
    logits = hidden.double() @ weight.double().T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    target[:10] = logits[:10].argmin(1)
    expected = torch.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
    assert float(expected[:10].max()) < -50
    assert float(expected.min()) < -103  # fp32 ends there
    logp = head_logp(hidden, LanguageHead(weight, softcap=softcap), target)
    assert torch.allclose(logp.double(), expected, rtol=1e-6, atol=1e-4)


def test_products_of_half_precision_are_added_to_a_wide_gradient() -> None:
    total, left, right = torch.ones(3, 5), torch.randn(3, 7).bfloat16(), torch.randn(7, 5).bfloat16()
    exact = left.double() @ right.double()
    module._add_product(total, left, right, empty=False)
    assert torch.allclose(total.double(), 1 + exact, atol=5e-2)
    module._add_product(total, left, right, empty=True)
    assert torch.allclose(total.double(), exact, atol=5e-2)
    assert not module.adds_wide(torch.device("cpu"))  # if this fails, a CPU has learned it: the copy there can go


def test_no_scored_rows() -> None:
    empty = head_logp(torch.randn(0, 8), LanguageHead(torch.randn(5, 8)), torch.zeros(0, dtype=torch.long))
    assert empty.shape == (0,)
