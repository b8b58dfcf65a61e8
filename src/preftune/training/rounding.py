"""Random rounding: of numbers in fp32 to bfloat16, and of moments to 8 bits; each is right on average.

The random bits of a number are a hash of what they are for, and no generator's state: they are the same on every rank
and device, after a resume, and in whatever pieces a tensor is gone through. Held by tests/training/test_rounding.py.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # numbers of a row that share a scale
TINY = torch.finfo(torch.float32).tiny


class Stream(NamedTuple):
    """Two keys, signed 32 bits each, of a stream of random bits."""

    first: int
    second: int

    @classmethod
    def of(cls, *words: int) -> Stream:
        """The stream of these words: a run's seed, a parameter's number, an update, and what is rounded."""
        digest = hashlib.blake2b(",".join(map(str, words)).encode(), digest_size=8).digest()
        return cls(int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True))


def random_bits(stream: Stream, start: int, shape: torch.Size, device: torch.device) -> Tensor:
    """int32 of this shape, uniform over all 2^32: the bits of numbers start, start + 1, ... of the stream.

    The mixing is Wellons' lowbias32 (github.com/skeeto/hash-prospector); products wrap around.
    """
    x = torch.arange(shape.numel(), dtype=torch.int32, device=device)
    x += _signed(start + stream.first)
    x ^= (x >> 16) & 0xFFFF  # a shift of int32 copies the sign
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x ^= stream.second
    x *= _signed(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    return x.view(shape)


def _signed(number: int) -> int:
    """The number modulo 2^32, as int32 has it."""
    return (number + 2**31) % 2**32 - 2**31


def rounded_to_bfloat16(x: Tensor, bits: Tensor) -> Tensor:
    """fp32 -> bfloat16, up or down in proportion to how near each neighbor is, by the low 16 of the bits.

    bfloat16 is the upper half of fp32: adding a uniform number to the lower half carries with the right probability.
    """
    return ((x.view(torch.int32) + (bits & 0xFFFF)) & -0x10000).view(torch.float32).to(torch.bfloat16)


# A moment x of a block whose largest is s is kept as a whole number c up to n:      |x| = s (c / n)^p
#
# The second moment (n = 255, p = 4) spans s down to 2e-10 s, and its root 1 down to 1.5e-5, in steps of 5 % at a tenth
# of the largest; the first (n = 127 and a sign, p = 2) goes down to 6e-5 s. An average over 1000 updates changes by
# 0.1 % in one, which is below such a step: rounded to the nearest it would stay where it is. So c goes up or down at
# random, with the probability that makes x right on average.
class Code(NamedTuple):
    """How numbers are kept in 8 bits. largest: n; squarings: log2 of p; signed: whether they may be negative."""

    largest: int
    squarings: int
    signed: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.signed else torch.uint8

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Codes (rows, columns), scales (rows, blocks) -> fp32 (rows, columns)."""
        wide = codes.float()
        x = self._powered(wide.abs().div_(self.largest)).mul_(_spread(scales, codes.shape[1]))
        return x.copysign_(wide) if self.signed else x

    def encode(self, x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 (rows, columns), random bits of that shape, of which the upper 16 count -> codes and scales.

        Where none is negative, only 0 has the code 0, because updates are divided by the root of such numbers.
        """
        size, columns = x.abs(), x.shape[1]
        scales = torch.nn.functional.pad(size, (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK)).amax(2)
        share = size.div_(_spread(scales.clamp(min=TINY), columns))
        code = share.clone()
        for _ in range(self.squarings):
            code.sqrt_()
        code.mul_(self.largest).floor_()
        lower, upper = self._powered(code / self.largest), self._powered((code + 1).div_(self.largest))
        chance = share.sub_(lower).div_(upper.sub_(lower))
        code.add_(((bits >> 16) & 0xFFFF) < chance.mul_(2**16)).clamp_(max=self.largest)
        code = code.copysign_(x) if self.signed else torch.maximum(code, (x > 0).to(code))
        return code.to(self.dtype), scales

    def _powered(self, x: Tensor) -> Tensor:
        for _ in range(self.squarings):
            x.square_()
        return x


FIRST_MOMENT, SECOND_MOMENT = Code(127, 1, signed=True), Code(255, 2, signed=False)


def blocks_of(columns: int) -> int:
    """Scales of a row of so many numbers."""
    return -(-columns // BLOCK)


def _spread(scales: Tensor, columns: int) -> Tensor:
    """(rows, blocks) -> (rows, columns): the scale of each number."""
    return scales.repeat_interleave(BLOCK, 1)[:, :columns] if scales.shape[1] > 1 else scales.expand(-1, columns)
