"""Running out of memory halves the packs, on whichever device it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import group

from preftune.errors import IO, UserError, is_out_of_memory
from preftune.pack.oom import OomRetry

ON_A_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4611686018427387904 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    ON_A_CPU,
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((1,), np.dtype("f4")),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
]
OTHERS = [RuntimeError("shape '[2]' is invalid"), ValueError("out of memory"), OSError(12, "Cannot allocate memory")]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_packs_are_halved_until_they_fit(error: Exception) -> None:
    rows, retry, tried = [group([1], [2]) for _ in range(5)], OomRetry(), []

    def work(packs: object) -> object:
        tried.append(packs)
        if max(map(len, packs)) > 2:
            raise error
        return packs

    assert retry.run(rows, [(0, 1, 2, 3, 4)], work) == ((0, 1), (2,), (3,), (4,))
    assert retry.splits == 2
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_one_row_that_does_not_fit_is_named_with_code_74(error: Exception) -> None:
    def work(_: object) -> None:
        raise error

    with pytest.raises(UserError, match="one row of 2 tokens does not fit into memory") as raised:
        OomRetry().run([group([1], [2])], [(0,)], work)
    assert raised.value.code == IO


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_another_error_is_not_taken_for_it(error: Exception) -> None:
    def work(_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        OomRetry().run([group([1], [2]), group([1], [3])], [(0, 1)], work)
    assert not is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
