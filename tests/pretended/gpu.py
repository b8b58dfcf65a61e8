"""torch with a GPU that is not there: `device.cpp` built and loaded, and what it cannot say from C++.

As a plugin of pytest (`-p pretended.gpu`) or the first import of a program; before torch is imported, since torch asks
once for what knows CUDA. The environment's PRETENDED is a folder for the library that is built.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import partialmethod
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

SOURCE = Path(__file__).with_name("device.cpp")
MEMORY = 8 * 2**30  # bytes that the device says it has
PROPERTIES = SimpleNamespace(name="pretended", major=9, minor=0, multi_processor_count=1, total_memory=MEMORY)


def built(folder: Path) -> Path:
    """The library, which is built once for each source and version of torch."""
    torch_folder = Path(find_spec("torch").origin).parent  # type: ignore[union-attr, arg-type]
    name = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    library = folder / f"{name}.so"
    if not library.exists():
        include, lib = torch_folder / "include", torch_folder / "lib"
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / library.name
            headers = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
            options = ["-shared", "-fPIC", "-O1", "-std=c++20", *headers, f"-L{lib}", "-ltorch_cpu", "-lc10"]
            subprocess.run(["g++", str(SOURCE), "-o", str(made), *options], check=True, capture_output=True, text=True)
            made.replace(library)
    return library


def load() -> None:
    """Give this process the device. Libraries that look for CUDA when they are imported are imported before."""
    lib = Path(find_spec("torch").origin).parent / "lib"  # type: ignore[union-attr, arg-type]
    library = built(Path(os.environ["PRETENDED"]))
    for path in (lib / "libc10.so", lib / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if find_spec("bitsandbytes"):
        __import__("bitsandbytes")  # so that its own kernels of CUDA are not asked for, but those that torch makes up
    import torch

    numbers = torch.get_rng_state, torch.set_rng_state
    cuda = {
        "Stream": _Stream,
        "Event": _Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: _Stream(),
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: numbers[0](),
        "set_rng_state": lambda state, device=None: numbers[1](state),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: PROPERTIES,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    for name, value in cuda.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # type: ignore[attr-defined]
    torch._C._cuda_set_sync_debug_mode = lambda mode: torch.ops.pretended.refuse_waits(mode == 2)  # type: ignore[attr-defined]
    torch.UntypedStorage.clone = _clone  # type: ignore[method-assign]  which C++ of this build has for the CPU alone
    torch.UntypedStorage.resize_ = partialmethod(_resize, torch.UntypedStorage.resize_)  # type: ignore[assignment]
    join = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend, **keys: join(backend.replace("nccl", "gloo"), **keys)
    _operators_of_cuda()
    _without_compilers()


class _Stream:
    """A stream, or an event of one, of a device that has always done everything."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record_event(self, event: object = None) -> _Stream:
        return self

    def record(self, stream: object = None) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


def _clone(storage):
    import torch

    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage().copy_(storage)


def _resize(storage, usual, size):
    import torch

    if storage.device.type == "cpu":
        return usual(storage, size)
    over = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    torch.ops.pretended.resize_storage(over, size)
    return storage


def _operators_of_cuda() -> None:
    """Those that torch has for CUDA alone, by their definitions."""
    import torch
    from flash import backward, forward
    from torch import Tensor

    from preftune.model.layout import Paths, Shape

    on_host, on_device = torch.ops.pretended.on_host, torch.ops.pretended.on_device

    def mm(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
        return left.to(out_dtype) @ right.to(out_dtype)

    def mm_out(left: Tensor, right: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
        return out.copy_(mm(left, right, out_dtype))

    def addmm(total, left, right, out_dtype, *, beta=1, alpha=1):
        product = alpha * mm(left, right, out_dtype)
        return product if beta == 0 else beta * total.to(out_dtype) + product  # what is there is not read with beta = 0

    def addmm_out(total, left, right, out_dtype, *, beta=1, alpha=1, out):
        return out.copy_(addmm(total, left, right, out_dtype, beta=beta, alpha=alpha))

    def rms_norm_backward(dy, x, shape, r, weight, learns):
        rows, width = tuple(range(x.dim() - len(shape))), tuple(range(x.dim() - len(shape), x.dim()))
        normed, dnormed = x * r, dy * weight
        dx = r * (dnormed - normed * (dnormed * normed).mean(width, keepdim=True))
        return dx if learns[0] else None, (dy * normed).sum(rows) if learns[1] else None

    def histc(x: Tensor, bins: int = 100, low: float = 0, high: float = 0) -> Tensor:  # of whole numbers, too
        return on_device(torch.histc(on_host(x).double(), bins, low, high).to(x.dtype))

    def call_of(cu_q: Tensor, cu_k: Tensor, scale: float, left: int) -> tuple[Paths, Shape]:
        assert cu_q.dtype == cu_k.dtype == torch.int32  # as the kernel demands
        paths = SimpleNamespace(cu_q=on_host(cu_q), cu_k=on_host(cu_k))
        return paths, Shape(scale, window=None if left < 0 else left + 1)  # type: ignore[return-value]

    def flash(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *,
              scale, window_size_left, window_size_right):  # fmt: skip
        for x in (q, k, v):
            assert x.dtype in (torch.float16, torch.bfloat16)
            assert x.is_contiguous()
            assert x.shape[-1] % 8 == 0
        assert causal or window_size_right == 0
        paths, shape = call_of(cu_q, cu_k, scale, window_size_left)
        out, lse = forward(*map(on_host, (q, k, v)), paths, shape)
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)
        return on_device(out), on_device(lse), unused, unused, unused

    def flash_backward(dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, seed, offset, *,
                       scale, window_size_left, window_size_right):  # fmt: skip
        paths, shape = call_of(cu_q, cu_k, scale, window_size_left)
        gradients = backward(*map(on_host, (dout, q, k, v, out, lse)), paths, shape)
        return tuple(on_device(d) for d in gradients)

    operators = {
        "mm.dtype": mm, "mm.dtype_out": mm_out, "addmm.dtype": addmm, "addmm.dtype_out": addmm_out,
        "_fused_rms_norm_backward": rms_norm_backward, "histc": histc,
        "_flash_attention_forward": flash, "_flash_attention_backward": flash_backward,
    }  # fmt: skip
    _operators_of_cuda.library = library = torch.library.Library("aten", "IMPL")  # type: ignore[attr-defined]  kept
    for name, function in operators.items():
        library.impl(name, function, "CUDA")


def _without_compilers() -> None:
    """FlexAttention by torch's own operations, in place of a kernel that nothing here can run."""
    from torch.nn.attention.flex_attention import flex_attention

    from preftune.model import flex

    flex._compiled = lambda: flex_attention  # type: ignore[assignment]


load()
