"""Counter-based noise: random numbers that are a function of their key alone.

A draw is keyed by (seed, iteration, row, step, token). It does not depend on the shape of the batch, on which rows are
still being decoded or on the number of devices, and there is no generator state to save.
The mixing function is the finalizer of SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number
Generators"), applied once per component of the key. Integers are 64 bits and wrap.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern ``value`` read as a signed integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Int[Tensor, "*N"], by: int) -> Int[Tensor, "*N"]:
    """Logical shift: zeros come in from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mix(bits: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """Scramble 64 bits: flipping one input bit flips each output bit with probability one half."""
    bits = bits + _GOLDEN
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def fold(key: Int[Tensor, "*#N"], number: Int[Tensor, "*#N"] | int) -> Int[Tensor, "*N"]:
    """A new key from a key and one more component, broadcast against each other."""
    if isinstance(number, int):
        number = torch.tensor(_signed(number), dtype=torch.int64, device=key.device)
    return mix(key ^ mix(number))


def row_keys(*, seed: int, stream: int, iteration: int, rows: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """One key per global row.

    Args:
        stream: number of the use (training rollouts, evaluation, …), so that each has its own noise.
    """
    key = torch.zeros((), dtype=torch.int64, device=rows.device)
    for component in (seed, stream, iteration):
        key = fold(key, component)
    return fold(key.expand_as(rows), rows)


def uniform(keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """One number in (0, 1) per key, in float64."""
    # 52 bits plus one half are exact in float64; with 53 bits the largest value would round up to 1.
    return (_shift_right(mix(keys), 12).double() + 0.5) * 2.0**-52


def gumbel(keys: Int[Tensor, " B"], *, size: int) -> Float[Tensor, "B V"]:
    """Standard Gumbel noise, ``size`` independent numbers per key, in float64."""
    tokens = torch.arange(size, dtype=torch.int64, device=keys.device)
    return -torch.log(-torch.log(uniform(fold(keys[:, None], tokens[None]))))


def permutation(*, seed: int, stream: int, iteration: int, size: int) -> Int[Tensor, " N"]:
    """A uniformly random order of ``size`` rows, the same on every device and rank."""
    keys = row_keys(seed=seed, stream=stream, iteration=iteration, rows=torch.arange(size))
    return uniform(keys).argsort(stable=True)
