"""Random rounding is right on average, within one step of what it rounds, and the same wherever it is done."""

from __future__ import annotations

import pytest
import torch

from preftune.training.rounding import (
    BLOCK,
    FIRST_MOMENT,
    SECOND_MOMENT,
    Code,
    Stream,
    blocks_of,
    random_bits,
    rounded_to_bfloat16,
)

CPU = torch.device("cpu")
TIMES = 400


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Of both signs and eight orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (-8 * torch.rand(shape, generator=generator))


def bits(shape: torch.Size, number: int) -> torch.Tensor:
    return random_bits(Stream.of(7, number), 0, shape, CPU)


def mixed(index: int, stream: Stream) -> int:
    """`random_bits` in whole numbers of Python."""
    x = (index + stream.first) % 2**32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15) ^ stream.second % 2**32) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def test_bits_are_the_hash_of_seed_and_index_whatever_piece_is_asked_for() -> None:
    stream, start = Stream.of(3, 1, 4), 2**32 - 5
    drawn, state = random_bits(stream, start, torch.Size((4, 6)), CPU), torch.random.get_rng_state()
    assert (drawn.long() % 2**32).flatten().tolist() == [mixed(start + i, stream) for i in range(24)]
    assert torch.equal(random_bits(stream, start + 6, torch.Size((2, 6)), CPU), drawn[1:3])
    assert not torch.equal(random_bits(Stream.of(3, 1, 5), start, torch.Size((4, 6)), CPU), drawn)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bits_are_even() -> None:
    """Every bit, and every pair of neighbors in index or update, is set as often as chance has it: 5 sigma."""
    drawn = torch.stack([random_bits(Stream.of(0, 0, step), 0, torch.Size((2**16,)), CPU) for step in range(4)])
    for bit in range(32):
        is_set = (drawn >> bit) & 1
        for sample in (is_set, is_set[1:] ^ is_set[:-1], is_set[:, 1:] ^ is_set[:, :-1]):
            assert abs(float(sample.double().mean()) - 0.5) < 5 * 0.5 / sample.numel() ** 0.5


def test_bfloat16_is_one_of_both_neighbors_and_right_on_average() -> None:
    x = numbers(50, 40)
    rounded = torch.stack([rounded_to_bfloat16(x, bits(x.shape, i)).double() for i in range(TIMES)])
    spacing = 2.0 ** (torch.frexp(x).exponent.double() - 8)
    assert bool(((rounded - x).abs() < spacing).all())
    off = (rounded.mean(0) - x.double()) / spacing
    assert float(off.abs().max()) < 5.5 * 0.5 / TIMES**0.5
    assert abs(float(off.mean())) < 5 * 0.5 / (TIMES * x.numel()) ** 0.5
    exact = x.bfloat16()
    assert torch.equal(rounded_to_bfloat16(exact.float(), bits(x.shape, 0)), exact)
    assert rounded_to_bfloat16(torch.tensor([torch.inf, -torch.inf, 0.0]), bits(torch.Size((3,)), 1)).tolist() == [
        torch.inf, -torch.inf, 0.0,
    ]  # fmt: skip


@pytest.mark.parametrize("code", [FIRST_MOMENT, SECOND_MOMENT], ids=["first", "second"])
@pytest.mark.parametrize("columns", [1, 40, BLOCK, BLOCK + 44])
def test_codes_are_within_a_step_and_right_on_average(code: Code, columns: int) -> None:
    x = numbers(20, columns) if code.signed else numbers(20, columns).square()
    x[3] = 0
    decoded = []
    for number in range(TIMES):
        codes, scales = code.encode(x, bits(x.shape, number))
        assert codes.dtype == code.dtype
        assert scales.shape == (20, blocks_of(columns))
        decoded.append(code.decode(codes, scales).double())
    largest = scales.repeat_interleave(BLOCK, 1)[:, :columns].double()
    share = torch.where(largest > 0, x.abs() / largest, 0)
    p = 2**code.squarings
    step = largest * (
        (share ** (1 / p) + 1 / code.largest) ** p - (share ** (1 / p) - 1 / code.largest).clamp(min=0) ** p
    )
    mean = torch.stack(decoded).mean(0)
    assert bool(((torch.stack(decoded) - x).abs() <= step * 1.001).all())
    least = 1 if code.signed else 2 * code.largest**-p  # below the least code a positive number is rounded up, always
    counted = share > (0 if code.signed else least)
    assert bool(((mean - x).abs() <= 5.5 * 0.5 / TIMES**0.5 * step)[counted].all())
    assert bool((decoded[0][x == 0] == 0).all())
    if not code.signed:
        assert bool((decoded[0][x > 0] > 0).all())


def test_an_average_over_a_thousand_updates_moves_although_each_change_is_below_a_step() -> None:
    """Rounded to the nearest it would stay at 1; it is to come to 0.2 + 0.8 / e^2 = 0.31."""
    x = torch.ones(64, 64)
    x[:, 0] = 2.0  # keeps the scale
    for step in range(2000):
        x = SECOND_MOMENT.decode(*SECOND_MOMENT.encode(x, bits(x.shape, step)))
        x[:, 1:].mul_(0.999).add_(0.001 * 0.2)
    assert float(x[:, 1:].mean()) == pytest.approx(0.2 + 0.8 * 0.999**2000, rel=0.01)
