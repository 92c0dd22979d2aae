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

BLOCK = 3 << 13
"""Number of tokens that are hashed at a time: what one core does by itself, in its own cache."""

FEW = 1 << 17
"""Number of tokens up to which noise for all of them is as fast."""

_BITS = 31
_RANGE = 2.0**_BITS
_MARGIN = 1024.0
"""Of the range: four times what rounding to float32 can move a number in it."""


def _shift_right(bits: Int[Tensor, "*N"], by: int) -> Int[Tensor, "*N"]:
    """Logical shift: zeros come in from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mix(bits: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """Scramble 64 bits: flipping one input bit flips each output bit with probability one half."""
    return _mix_in_place(bits.clone(), torch.empty_like(bits))


def _mix_in_place(bits: Int[Tensor, "*N"], spare: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """`mix` in place; ``spare`` is memory of the same shape that it may overwrite."""
    bits.add_(_GOLDEN)
    for by, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        torch.bitwise_right_shift(bits, by, out=spare)
        bits.bitwise_xor_(spare.bitwise_and_((1 << (64 - by)) - 1))
        if factor != 1:
            bits.mul_(factor)
    return bits


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
    return _shift_right(mix(keys), 12).double().add_(0.5).mul_(2.0**-52)


def gumbel(keys: Int[Tensor, " B"], *, size: int) -> Float[Tensor, "B V"]:
    """Standard Gumbel noise, ``size`` independent numbers per key, in float64."""
    tokens = torch.arange(size, dtype=torch.int64, device=keys.device)
    return _gumbel_of(fold(keys[:, None], tokens[None]))


def _gumbel_of(keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """One number of standard Gumbel noise per key, in float64."""
    return uniform(keys).log_().neg_().log_().neg_()


def gumbel_argmax(logprobs: Float[Tensor, "B V"], keys: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The argmax of log-probabilities plus the noise of `gumbel`, without noise where it cannot matter.

    argmax_j (log p_j + g_j), g_j = −log(−log u_j), samples from p (Gumbel 1954). With a large vocabulary most of the
    time goes into two logarithms for each token, and into memory for what comes between. But token j exceeds a number b
    only if −log u_j ≤ p_j exp(−b), and as 1 − u ≤ −log u, only if 1 − u_j ≤ p_j exp(−b): with b of one token at hand,
    this leaves a handful. They are found in blocks that stay in the cache, from the highest bits of their hashes, and
    only they get noise.
    """
    if logprobs.numel() <= FEW:
        return (logprobs + gumbel(keys, size=logprobs.shape[-1]).to(logprobs.dtype)).argmax(-1)
    largest, likeliest = logprobs.max(-1)
    bar = largest + _gumbel_of(fold(keys, likeliest)).to(logprobs.dtype)
    rows, tokens = _candidates(logprobs, keys, bar)
    noisy = logprobs[rows, tokens] + _gumbel_of(fold(keys[rows], tokens)).to(logprobs.dtype)
    best = bar.scatter_reduce(0, rows, noisy, "amax")
    is_best = noisy == best[rows]
    return likeliest.scatter_reduce(0, rows[is_best], tokens[is_best], "amin", include_self=False)


def _candidates(
    logprobs: Float[Tensor, "B V"], keys: Int[Tensor, " B"], bar: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Rows and tokens of all that reach the bar of their row, and of a few that do not."""
    count, size = logprobs.shape
    tokens, least = mix(torch.arange(size, device=keys.device)), _least(logprobs - bar[:, None])
    height, width = max(1, BLOCK // size), min(size, BLOCK)
    work = torch.empty(2, height * width, dtype=torch.int64, device=keys.device)
    found = []
    for row in range(0, count, height):
        for token in range(0, size, width):
            part = least[row : row + height, token : token + width]
            bits, spare = (some[: part.numel()].view(part.shape) for some in work)
            torch.bitwise_xor(keys[row : row + height, None], tokens[None, token : token + width], out=bits)
            highest = _highest(_mix_in_place(_mix_in_place(bits, spare), spare))
            places = (highest.float() >= part).nonzero()
            found.append(places + places.new_tensor([row, token]))
    rows, chosen = torch.cat(found).unbind(1)
    return rows, chosen


def _least(distance: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """The least of the highest bits of u with which a token can reach a bar at this distance; NaN for none."""
    return distance.float().exp_().mul_(-_RANGE * (1 + 1e-5)).add_(_RANGE - _MARGIN)


def _highest(bits: Int[Tensor, "b v"]) -> Int[Tensor, "b v"]:
    """The highest bits of u, in place."""
    return bits.bitwise_right_shift_(64 - _BITS).bitwise_and_((1 << _BITS) - 1)


def permutation(*, seed: int, stream: int, iteration: int, size: int) -> Int[Tensor, " N"]:
    """A uniformly random order of ``size`` rows, the same on every device and rank."""
    keys = row_keys(seed=seed, stream=stream, iteration=iteration, rows=torch.arange(size))
    return uniform(keys).argsort(stable=True)
