"""Triton's kernels against the formulas in double: on a GPU, or else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from preftune.model import fused
from preftune.model import logp as module
from preftune.model.heads import LanguageHead
from preftune.model.logp import head_logp_and_squares

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytest.importorskip("triton", reason="triton is not installed: torch's CUDA wheels bring it")
computes = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs in the interpreter, in a child process")


@pytest.fixture(autouse=True)
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.model import kernels

    for block in ("BLOCK", "GATE_BLOCK"):
        monkeypatch.setattr(kernels, block, 16)
    for user in (module, fused):
        monkeypatch.setattr(user, "by_triton", lambda _: True)


@computes
@pytest.mark.parametrize("mode", ["kept", "made again", "frozen"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, 30.0)])
def test_value_and_gradient(
    mode: str, bias: bool, scale: float, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", {DEVICE: 1})
    monkeypatch.setattr(module, "LEAST", (4, 21))
    monkeypatch.setattr(module, "KEEP", {DEVICE: 2**30 if mode == "kept" else 0})
    torch.manual_seed(0)
    hidden = 3 * torch.randn(10, 8, device=DEVICE)
    weight, shift = 5 * torch.randn(61, 8, device=DEVICE), torch.randn(61, device=DEVICE)
    target, upstream = torch.randint(0, 61, (10,), device=DEVICE), torch.randn(10, device=DEVICE)
    target[0] = (hidden[0] @ weight.T).argmin()  # of a probability that is 0 in fp32
    ways = []
    for dtype in (torch.float32, torch.float64):
        h = hidden.to(dtype).requires_grad_()
        W, b = (x.to(dtype).requires_grad_(mode != "frozen") for x in (weight, shift))
        if dtype == torch.float32:
            logp, squares = head_logp_and_squares(h, LanguageHead(W, b if bias else None, scale, softcap), target)
        else:
            z = scale * (h @ W.T + (b if bias else 0))
            z = z if softcap is None else softcap * torch.tanh(z / softcap)
            log_p = torch.log_softmax(z, 1)
            logp, squares = log_p.gather(1, target[:, None])[:, 0], (2 * log_p.detach()).logsumexp(1)
        learning = [x for x in (h, W, b if bias else None) if x is not None and x.requires_grad]
        ways.append([logp.detach(), squares, *torch.autograd.grad(logp, learning, upstream.to(dtype))])
    assert softcap is not None or float(ways[1][0].min()) < -103  # fp32 ends there
    for ours, exact in zip(*ways, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours.double() - exact).abs().max()) < 2e-5 * max(
            1.0, float(exact.abs().max())
        )  # logits are to 120


@computes
def test_half_precision() -> None:
    """What goes into the products is rounded; log-probabilities are not."""
    torch.manual_seed(1)
    hidden, weight = torch.randn(6, 8, device=DEVICE).bfloat16(), torch.randn(40, 8, device=DEVICE).bfloat16()
    target = torch.randint(0, 40, (6,), device=DEVICE)
    h, W = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logp, _ = head_logp_and_squares(h, LanguageHead(W), target)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, 1).gather(1, target[:, None])[:, 0]
    logp.sum().backward()
    assert logp.dtype == torch.float32
    assert h.grad is not None
    assert h.grad.dtype == torch.bfloat16
    assert torch.allclose(logp.double(), exact, atol=1e-5 if DEVICE == "cuda" else 2e-2)  # a CPU rounds the logits


@computes
@pytest.mark.parametrize("frozen", [False, True])
def test_a_gated_mlp(frozen: bool) -> None:
    torch.manual_seed(2)
    x = torch.randn(7, 6, device=DEVICE)
    weights = [torch.randn(shape, device=DEVICE) for shape in ((9, 6), (9, 6), (6, 9))]
    upstream, ways = torch.randn(7, 6, device=DEVICE), []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_(), *(w.to(dtype).requires_grad_(not frozen) for w in weights)]
        if dtype == torch.float32:
            y = fused.GatedMLP.apply(*leaves)
        else:
            y = (torch.nn.functional.silu(leaves[0] @ leaves[1].T) * (leaves[0] @ leaves[2].T)) @ leaves[3].T
        learning = [leaf for leaf in leaves if leaf.requires_grad]
        ways.append([y.detach(), *torch.autograd.grad(y, learning, upstream.to(dtype))])
    for ours, exact in zip(*ways, strict=True):
        assert torch.allclose(ours.double(), exact, rtol=1e-5, atol=1e-4)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from preftune.model import kernels

POINTERS = {"target": "*i64", "dlogits": "*bf16", "g": "*bf16", "u": "*bf16", "h": "*bf16", "dg": "*bf16"}
SIZES = {"count": "i64", "scale": "fp32", "cap": "fp32"}
SIZES |= dict.fromkeys(("words", "start", "stride", "d_stride"), "i32")
for kernel in (kernels._rows_kernel, kernels._dlogits_kernel, kernels._gate_kernel, kernels._gate_backward_kernel):
    constants = {"vocab": 151936, "BIASED": True, "CAPPED": True, "BLOCK": 4096}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: "constexpr" if name in constants else SIZES.get(name, POINTERS.get(name, "*fp32"))
             for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    print(len(compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]))
"""


def child(*command: str, **more: str) -> str:
    """What Python prints on these words. Triton asks for its environment when torch first loads it, so not here."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | more
    ended = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the tests above have run here")
def test_the_kernels_in_the_interpreter() -> None:
    assert " passed" in child("-m", "pytest", "-v", "-p", "no:cacheprovider", __file__, TRITON_INTERPRET="1")


@pytest.mark.skipif(INTERPRETED, reason="the process that began the interpreter does this")
def test_the_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    """The interpreter takes what the compiler refuses, such as a name that changes its shape in a loop."""
    assert all(int(size) > 1000 for size in child("-c", COMPILE).split())
