"""Our norm, rotation, gated MLP and tied embedding: the formulas in double, and swapped only for what they equal."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from contextlib import nullcontext
from types import MethodType

import pytest
import torch
from making import groups, tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from preftune.model import fused, logp
from preftune.model.as_made import as_made
from preftune.model.fuse import ROTARY, fuse, fused_parts
from preftune.model.fused import GatedMLP, KernelRMSNorm, RMSNorm, Rotation, rotate
from preftune.model.fused_adapter import AdaptedMLP, AdaptedProduct
from preftune.model.policy import trainable, wrap
from preftune.model.verify import disagreement, plain_logp
from preftune.pack.batch import collate


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def frozen(*shape: int, seed: int) -> torch.Tensor:
    return double(*shape, seed=seed).detach()


def adapted_mlp(x: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
    gate, up, down, ag, bg, au, bu, ad, bd = matrices
    h = nn.functional.silu(x @ (gate + 2 * bg @ ag).T) * (x @ (up + 3 * bu @ au).T)
    return h @ (down + 0.5 * bd @ ad).T


def half_rotated(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


ANGLES = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).repeat(1, 2)
COS, SIN = ANGLES.cos(), ANGLES.sin()
FORMULAS = {
    "norm": (
        lambda x, w: RMSNorm.apply(x, w, 1e-6, torch.float64),
        lambda x, w: w * x / (x**2).mean(-1, keepdim=True).add(1e-6).sqrt(),
        [double(2, 3, 7), double(7, seed=1)],
    ),
    "rotation": (
        lambda x: Rotation.apply(x, COS, SIN),
        lambda x: x * COS + half_rotated(x) * SIN,
        [double(1, 2, 5, 6)],
    ),
    "rotation of a part": (
        lambda x: Rotation.apply(x, COS, SIN),
        lambda x: torch.cat([x[..., :6] * COS + half_rotated(x[..., :6]) * SIN, x[..., 6:]], -1),
        [double(1, 2, 5, 10)],
    ),
    "mlp": (
        GatedMLP.apply,
        lambda x, gate, up, down: (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T,
        [double(2, 3, 4), double(6, 4, seed=1), double(6, 4, seed=2), double(4, 6, seed=3)],
    ),
    "adapted product": (
        lambda x, w, b, down, up: AdaptedProduct.apply(x, w, b, down, up, 1.5),
        lambda x, w, b, down, up: x @ (w + 1.5 * up @ down).T + b,
        [double(2, 3, 5), frozen(4, 5, seed=1), frozen(4, seed=2), double(2, 5, seed=3), double(4, 2, seed=4)],
    ),
    "adapted mlp": (
        lambda x, g, u, d, *thin: AdaptedMLP.apply(x, g, u, d, (2.0, 3.0, 0.5), *thin),
        adapted_mlp,
        [double(2, 3, 4), frozen(6, 4, seed=1), frozen(6, 4, seed=2), frozen(4, 6, seed=3), double(2, 4, seed=4),
         double(6, 2, seed=5), double(2, 4, seed=6), double(6, 2, seed=7), double(2, 6, seed=8), double(4, 2, seed=9)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_in_double(name: str) -> None:
    ours, plain, inputs = FORMULAS[name]
    y, expected = ours(*inputs), plain(*inputs)
    allowed = 1e-12 if "adapted" in name else 1e-13  # their numbers are ten times as large
    assert torch.allclose(y, expected, atol=allowed, rtol=0)
    upstream, learn = torch.randn_like(expected), [x for x in inputs if x.requires_grad]
    for a, b in zip(*(torch.autograd.grad(z, learn, upstream) for z in (y, expected)), strict=True):
        assert torch.allclose(a, b, atol=10 * allowed, rtol=10 * allowed)


EXPECTED = {
    "llama": ["mlp", "norm", "rotate"],
    "qwen3": ["mlp", "norm", "rotate"],
    "gemma": ["norm_from_zero", "rotate"],  # its MLP has another activation
    "gpt_neox": ["rotate"],  # a quarter of each head
    "gpt_oss": ["norm"],  # angles of another form
    "gpt2": [],
    "glm4": ["norm"],  # its halves are interleaved
}


def swapped(model: nn.Module) -> list[str]:
    """The names of our functions that a model has."""
    methods = [f.__func__ for part in model.modules() if isinstance(f := vars(part).get("forward"), MethodType)]
    forwards = map(inspect.unwrap, methods)  # transformers 5.24 decorates them
    return sorted({rotate.__name__ if f.__globals__.get(ROTARY) is rotate else f.__name__ for f in forwards})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gain", [0, 3])
def test_what_is_swapped(family: str, dtype: torch.dtype, gain: int) -> None:
    """Also in a type so coarse that at this gain w and 1 + w look alike."""
    model = tiny(family, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(gain)
    fuse(model)
    assert swapped(model) == EXPECTED[family]


def renaming(forward):
    """As releases of transformers decorate a forward whose keywords they rename."""

    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        kwargs.pop("old_name", None)
        return forward(self, *args, **kwargs)

    return wrapper


def blind(forward):
    """A decorator that keeps its function where it cannot be found."""
    functions = [forward]
    return functools.wraps(forward)(lambda self, *args, **kwargs: functions[0](self, *args, **kwargs))


@pytest.mark.parametrize(
    ("decorators", "rotations"), [([renaming], 3), ([renaming, renaming], 3), ([blind], 0), ([renaming, blind], 0)]
)
def test_a_decorated_attention_rotates_by_ours_and_keeps_its_decorators(
    decorators: list, rotations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(tiny("llama").base_model.layers[0].self_attn)
    for decorator in decorators:
        monkeypatch.setattr(kind, "forward", decorator(kind.forward))
    policy, _ = wrap(tiny("llama"), "auto")
    assert fused_parts(policy.module) == {"rotation": (rotations, 3), "gated MLP": (3, 3), "norm": (7, 7)}
    attention = policy.module.base_model.layers[0].self_attn
    assert ("forward" in vars(attention)) == (rotations > 0)
    if rotations:
        assert inspect.unwrap(vars(attention)["forward"].__func__).__globals__[ROTARY] is rotate
    batch = collate(groups(3, seed=1))
    assert disagreement(policy, batch, plain_logp(policy, batch)).worst < 1e-4


def test_another_model_of_the_family_stays_as_it_is() -> None:
    model, other, ids = tiny("llama"), tiny("llama"), torch.tensor([[5, 6, 7]])
    before = sys.modules[type(model).__module__].apply_rotary_pos_emb
    fuse(model)
    assert sys.modules[type(model).__module__].apply_rotary_pos_emb is before
    assert not any("forward" in vars(part) for part in other.modules())
    ours = [part for part in model.modules() if "forward" in vars(part)]
    with as_made(model, "eager"):
        assert not any("forward" in vars(part) for part in ours)
        plain = model(input_ids=ids).logits
    assert all("forward" in vars(part) for part in ours)
    assert torch.allclose(model(input_ids=ids).logits, plain, atol=1e-6)


def test_a_norm_in_half_precision_is_no_worse_than_the_familys() -> None:
    """1 + w would round away what a norm has learned."""
    model = tiny("gemma", dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(0.0035)
    ids = torch.randint(3, 60, (8, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = copy.deepcopy(model).float()(input_ids=ids).logits
        original = model(input_ids=ids).logits - exact
        fuse(model)
        ours = model(input_ids=ids).logits - exact
    assert float(ours.square().mean()) < 1.2 * float(original.square().mean())


def tied(**keys: object) -> torch.nn.Module:
    """A tiny Llama whose embedding is its head."""
    model = tiny("llama", tie_word_embeddings=True, **keys)  # type: ignore[arg-type]
    model.tie_weights()
    return model


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    ids = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_fused_model_has_the_same_gradients(family: str) -> None:
    made = [tiny(family, dtype=torch.float64) for _ in range(2)]
    fuse(made[0])
    assert swapped(made[0])
    for a, b in zip(*map(gradients, made), strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("padding", [None, 7])
@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("compute", [torch.float64, torch.bfloat16], ids=str)
def test_gradients_added_in_place_are_the_same(
    tie: bool, padding: int | None, layout: str, compute: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packs, one of them with the head's probabilities kept and one without."""
    gradients_of = []
    for in_place in (False, True):
        dtype = compute if compute == torch.float64 else torch.float32
        module = tied(dtype=dtype) if tie else tiny("llama", dtype=dtype)
        module.get_input_embeddings().padding_idx = padding
        policy = wrap(module, layout, torch.float32 if dtype == compute else compute)[0]
        policy = trainable(policy, checkpointing=False) if in_place else policy
        for seed, keep in ((3, 0), (4, 2**30)):
            monkeypatch.setattr(logp, "KEEP", {"cpu": keep})
            batch = collate(groups(4, seed=seed))
            batch.sum(policy.token_logp(batch)).sum().backward()
        gradients_of.append([p.grad for p in module.parameters()])
    for a, b in zip(*gradients_of, strict=True):
        assert a.dtype == b.dtype == dtype
        assert torch.allclose(a, b, atol=1e-12 if dtype == compute else 1e-4, rtol=1e-10)


class Gated(nn.Module):
    """A gated MLP, but for what a family may add: a limit to the gate, a factor."""

    def __init__(self, limit: float = torch.inf, factor: float = 1.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.act_fn, self.limit, self.factor = nn.SiLU(), limit, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x).clamp(max=self.limit)
        return self.factor * self.down_proj(self.act_fn(gate) * self.up_proj(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("more", "swapped"), [({}, True), ({"limit": 7.0}, False), ({"factor": 0.97}, False)])
def test_an_mlp_that_does_more_stays(dtype: torch.dtype, more: dict[str, float], swapped: bool) -> None:
    model = tiny("llama")
    model.base_model.layers[0].mlp = part = Gated(**more).to(dtype)
    fuse(model)
    assert ("forward" in vars(part)) is swapped


def test_a_norm_of_another_formula_stays() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(32)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)

    model = tiny("llama")
    odd = OddRMSNorm()
    model.base_model.norm = odd
    fuse(model)
    assert "forward" not in vars(odd)


def test_a_copy_works_with_its_own_weights() -> None:
    model = tiny("llama")
    fuse(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert float(other(input_ids=torch.tensor([[5, 6]])).logits.abs().max()) == 0
        assert float(model(input_ids=torch.tensor([[5, 6]])).logits.abs().max()) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo2", "gpt2", "gpt_oss", "qwen3_moe", "phi"])
def test_half_precision_products_train(family: str) -> None:
    """fp32 weights, products in bfloat16: agrees with its own plain pass, and its gradient points where fp32's does."""
    gradients_of = []
    for compute in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(tiny(family).config, attn_implementation="eager").eval()
        policy, _ = wrap(module, "auto", compute)
        batch = collate(groups(3, seed=4))
        assert disagreement(policy, batch, plain_logp(policy, batch)).worst < 0.1
        (-batch.sum(policy.token_logp(batch))).sum().backward()
        grads = [p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]
        assert all(g.dtype == torch.float32 for g in grads)
        gradients_of.append(torch.cat(grads))
    assert float(torch.cosine_similarity(*gradients_of, dim=0)) > 0.99


def norm_gradients(
    dy: torch.Tensor, x: torch.Tensor, shape: torch.Size, r: torch.Tensor, w: torch.Tensor, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the backward pass of torch's kernel gives; there is none for a CPU."""
    assert x.dtype == w.dtype == dy.dtype
    unit = x * r
    dx = r * (w * dy - unit * (w * dy * unit).mean(-1, keepdim=True))
    dw = (dy * unit).flatten(0, -2).sum(0)
    return dx if wanted[0] else None, dw if wanted[1] else None


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_a_norm_by_torchs_kernels_keeps_its_input_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA; queries and keys come in half precision, and weights do not."""
    monkeypatch.setattr(fused, "norm_backward", norm_gradients)
    x, w = double(2, 3, 8).detach().bfloat16().requires_grad_(), double(8, seed=1).detach().float().requires_grad_()
    kept: list[torch.dtype] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.dtype) or tensor, lambda x: x):
        y = KernelRMSNorm.apply(x, w, 1e-6, torch.bfloat16)
    assert kept == [torch.bfloat16, torch.float32, torch.float32]
    upstream = double(2, 3, 8, seed=2).detach().bfloat16()
    exact_x, exact_w = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    exact = RMSNorm.apply(exact_x, exact_w, 1e-6, torch.float64)
    assert torch.allclose(y.double(), exact, rtol=1e-2)
    grads = torch.autograd.grad(y, [x, w], upstream)
    rights = torch.autograd.grad(exact, [exact_x, exact_w], upstream.double())
    for ours, right in zip(grads, rights, strict=True):
        assert torch.allclose(ours.double(), right, rtol=1e-2, atol=1e-3)
    assert grads[0].dtype == torch.bfloat16
    assert grads[1].dtype == torch.float32


class Casts(TorchDispatchMode):
    """Counts how often each parameter is cast, by its place in memory."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.counts = {p.data_ptr(): 0 for p in module.parameters() if p.dim() > 1}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_cast_once_a_step_and_give_the_same_gradients(checkpointing: bool, tied: bool) -> None:
    packs, gradients, most = [groups(2, seed=seed) for seed in range(3)], [], []
    for once in (False, True):
        module = tiny("qwen3", tie_word_embeddings=tied)
        policy = trainable(wrap(module, "auto", torch.bfloat16)[0], checkpointing=checkpointing)
        with policy.cast_once() if once else nullcontext(), Casts(module) as casts:
            for pack in packs:
                batch = policy.batch(pack)
                batch.sum(policy.token_logp(batch)).sum().backward()
        gradients.append([p.grad for p in module.parameters()])
        most.append(max(casts.counts.values()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert most[0] >= 3
    assert most[1] == 1
