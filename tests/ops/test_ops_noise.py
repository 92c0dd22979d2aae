import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_lightning.ops.noise import BLOCK, FEW, fold, gumbel, gumbel_argmax, mix, permutation, row_keys, uniform

MASK = 0xFFFFFFFFFFFFFFFF
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

int64s = st.integers(-(2**63), 2**63 - 1)
small = st.integers(0, 1000)


# SplitMix64 on Python's unbounded integers


def mix_by_hand(z: int) -> int:
    z = (z + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * MIX_1) & MASK
    z = ((z ^ (z >> 27)) * MIX_2) & MASK
    return z ^ (z >> 31)


def unmix(z: int) -> int:
    """The number that `mix_by_hand` turns into z."""

    def undo_shift(z: int, by: int) -> int:
        result = z
        for _ in range(64 // by):
            result = z ^ (result >> by)
        return result

    z = (undo_shift(z, 31) * pow(MIX_2, -1, 2**64)) & MASK
    z = (undo_shift(z, 27) * pow(MIX_1, -1, 2**64)) & MASK
    return (undo_shift(z, 30) - GOLDEN) & MASK


def fold_by_hand(key: int, number: int) -> int:
    return mix_by_hand(key ^ mix_by_hand(number & MASK))


def row_key_by_hand(seed: int, stream: int, iteration: int, row: int) -> int:
    key = 0
    for component in (seed, stream, iteration, row):
        key = fold_by_hand(key, component)
    return key


def signed(z: int) -> int:
    return z - 2**64 if z >= 2**63 else z


def unsigned(values: torch.Tensor) -> list[int]:
    return [v & MASK for v in values.tolist()]


def keys_of(rows: int | torch.Tensor, *, seed: int = 0, stream: int = 0, iteration: int = 0) -> torch.Tensor:
    rows = torch.arange(rows) if isinstance(rows, int) else rows
    return row_keys(seed=seed, stream=stream, iteration=iteration, rows=rows)


def test_oracle_gives_the_published_numbers():
    # first outputs of Vigna's splitmix64.c, seeds 0 and 1234567
    assert mix_by_hand(0) == 0xE220A8397B1DCDAF
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [mix_by_hand((1234567 + k * GOLDEN) & MASK) for k in range(4)] == published
    assert mix_by_hand(unmix(12345)) == 12345


# mix, fold, row_keys


@given(st.lists(int64s, max_size=20))
def test_mix_against_splitmix64(numbers):
    numbers += [0, 1, -1, 2**63 - 1, -(2**63), 2**32, -(2**32)]
    assert unsigned(mix(torch.tensor(numbers))) == [mix_by_hand(n & MASK) for n in numbers]


def test_mix_flips_half_of_the_bits_whichever_one_is_flipped():
    numbers = torch.arange(200)
    for bit in range(64):
        flipped = mix(numbers ^ signed(1 << bit)) ^ mix(numbers)
        share = sum(v.bit_count() for v in unsigned(flipped)) / (64 * 200)
        # 12800 coin flips: standard deviation 0.0044
        assert share == pytest.approx(0.5, abs=0.02)


@given(st.lists(st.tuples(int64s, int64s), min_size=1, max_size=10))
def test_fold_against_splitmix64(pairs):
    keys, numbers = torch.tensor(pairs).T
    expected = [fold_by_hand(k & MASK, n) for k, n in pairs]
    assert unsigned(fold(keys, numbers)) == expected
    assert [unsigned(fold(keys[i : i + 1], n))[0] for i, (_, n) in enumerate(pairs)] == expected


def test_fold_depends_on_the_order_of_the_components():
    key = torch.tensor([7])
    assert not torch.equal(fold(fold(key, 1), 2), fold(fold(key, 2), 1))


@given(int64s, small, small, st.lists(int64s, min_size=1, max_size=8))
def test_row_keys_against_splitmix64(seed, stream, iteration, rows):
    keys = row_keys(seed=seed, stream=stream, iteration=iteration, rows=torch.tensor(rows))
    assert unsigned(keys) == [row_key_by_hand(seed, stream, iteration, row) for row in rows]


def test_row_keys_of_different_components_differ():
    keys = torch.cat(
        [
            fold(keys_of(20, seed=seed, stream=stream, iteration=iteration), step)
            for seed in range(4)
            for stream in range(4)
            for iteration in range(4)
            for step in range(4)
        ]
    )
    assert len(keys.unique()) == len(keys) == 4**4 * 20


def test_row_keys_of_no_rows():
    assert keys_of(0).shape == (0,)
    assert gumbel(keys_of(0), size=3).shape == (0, 3)


# uniform


@given(st.lists(int64s, min_size=1, max_size=10))
def test_uniform_against_splitmix64(keys):
    expected = [((mix_by_hand(k & MASK) >> 12) + 0.5) / 2**52 for k in keys]
    assert uniform(torch.tensor(keys)).tolist() == expected


@pytest.mark.parametrize("bits", [0, 1, 2**12 - 1, 2**63, MASK - 2**11, MASK - 1, MASK])
def test_uniform_never_reaches_0_or_1_and_gumbel_never_infinity(bits):
    key = torch.tensor([signed(unmix(bits))])
    assert unsigned(mix(key)) == [bits]
    number = uniform(key)
    assert 0 < number.item() < 1
    assert (-torch.log(-torch.log(number))).isfinite().all()


def test_uniform_is_uniform():
    numbers = uniform(keys_of(200_000, seed=1)).numpy()
    assert stats.kstest(numbers, "uniform").pvalue > 0.01
    assert stats.chisquare(np.histogram(numbers, bins=1000, range=(0, 1))[0]).pvalue > 0.01
    # the low digits as well
    assert stats.kstest(numbers * 2**20 % 1, "uniform").pvalue > 0.01


# gumbel


def test_gumbel_against_splitmix64():
    keys = keys_of(3, seed=5, stream=1, iteration=2)
    noise = gumbel(keys, size=4)
    assert noise.dtype == torch.float64
    for b, row in enumerate(noise.tolist()):
        for token, value in enumerate(row):
            bits = mix_by_hand(fold_by_hand(row_key_by_hand(5, 1, 2, b), token))
            assert value == pytest.approx(-math.log(-math.log(((bits >> 12) + 0.5) / 2**52)), rel=1e-12)


def test_gumbel_has_the_moments_and_the_distribution_of_gumbel():
    noise = gumbel(keys_of(400, seed=2), size=500).flatten().numpy()
    # mean γ = 0.5772, variance π²/6; 2·10⁵ draws: standard errors 0.0029 and 0.0077 (kurtosis 5.4)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.009)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.025)
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.01


@settings(max_examples=20)
@given(seed=int64s, rows=st.lists(st.integers(0, 10**9), min_size=1, max_size=6), size=st.integers(1, 70))
def test_gumbel_does_not_depend_on_the_batch_or_the_vocabulary(seed, rows, size):
    whole = gumbel(keys_of(torch.tensor(rows), seed=seed), size=size)
    for i, row in enumerate(rows):
        assert torch.equal(gumbel(keys_of(torch.tensor([row]), seed=seed), size=size)[0], whole[i])
    assert torch.equal(
        gumbel(keys_of(torch.tensor(rows), seed=seed), size=(size + 1) // 2), whole[:, : (size + 1) // 2]
    )


def test_gumbel_does_not_depend_on_which_rows_are_left():
    # rows drop out while decoding; those that stay draw what they would have drawn
    keys = keys_of(10, seed=3)
    left = torch.tensor([7, 0, 4])
    for step in range(4):
        assert torch.equal(gumbel(fold(keys[left], step), size=33), gumbel(fold(keys, step), size=33)[left])


def test_gumbel_does_not_depend_on_any_generator_or_on_the_number_of_threads():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    noise = gumbel(keys_of(16), size=5000)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    torch.set_num_threads(2)
    try:
        assert torch.equal(gumbel(keys_of(16), size=5000), noise)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gumbel_max_draws_from_the_softmax(seed):
    logprobs = torch.tensor([2.0, 0.0, 1.0, -1.0, -3.0, 0.5], dtype=torch.float64).log_softmax(-1)
    draws = 50_000
    chosen = (logprobs + gumbel(fold(keys_of(draws, seed=seed), 4), size=6)).argmax(-1)
    counts = torch.bincount(chosen, minlength=6)
    assert stats.chisquare(counts, draws * logprobs.exp().numpy()).pvalue > 0.01


def test_gumbel_max_never_draws_an_impossible_token():
    logprobs = torch.tensor([0.5, 0.0, 0.5]).log()
    chosen = (logprobs + gumbel(keys_of(5000), size=3)).argmax(-1)
    assert torch.bincount(chosen, minlength=3)[1] == 0


def neighbours(what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """40,000 pairs of uniform numbers whose keys differ by one in one component."""
    rows, tokens = torch.arange(200), torch.arange(200)

    def numbers(*, seed=0, stream=0, iteration=0, rows=rows, step=0, tokens=tokens):
        keys = fold(row_keys(seed=seed, stream=stream, iteration=iteration, rows=rows), step)
        return uniform(fold(keys[:, None].expand(-1, 200), tokens.expand(200, -1))).flatten()

    after = {"rows": rows + 1} if what == "rows" else {"tokens": tokens + 1} if what == "tokens" else {what: 1}
    return numbers(), numbers(**after)


@pytest.mark.parametrize("what", ["seed", "stream", "iteration", "rows", "step", "tokens"])
def test_neighbouring_keys_are_not_correlated(what):
    x, y = (n.numpy() for n in neighbours(what))
    # standard error 1/√40000 = 0.005
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.015
    table = np.histogram2d(x, y, bins=16, range=[(0, 1), (0, 1)])[0]
    assert stats.chisquare(table.flatten()).pvalue > 0.01


def test_noise_of_different_components_is_not_the_same_noise_moved():
    # (row, step) against (step, row): a sum or an exclusive or of components would repeat itself
    keys = torch.stack([fold(keys_of(64), step) for step in range(64)])
    off_diagonal = ~torch.eye(64, dtype=torch.bool)
    assert not (keys == keys.T)[off_diagonal].any()
    assert len(keys.unique()) == 64 * 64


# permutation


@given(seed=int64s, stream=small, iteration=small, size=st.integers(0, 200))
def test_permutation_has_every_row_once_and_always_the_same_order(seed, stream, iteration, size):
    order = permutation(seed=seed, stream=stream, iteration=iteration, size=size)
    assert sorted(order.tolist()) == list(range(size))
    assert torch.equal(order, permutation(seed=seed, stream=stream, iteration=iteration, size=size))


def test_permutation_sorts_the_rows_by_their_numbers():
    numbers = [((mix_by_hand(row_key_by_hand(9, 2, 5, row)) >> 12) + 0.5) / 2**52 for row in range(50)]
    expected = sorted(range(50), key=numbers.__getitem__)
    assert permutation(seed=9, stream=2, iteration=5, size=50).tolist() == expected


@pytest.mark.parametrize("what", ["seed", "stream", "iteration"])
def test_permutation_changes_with_every_component(what):
    key = {"seed": 0, "stream": 0, "iteration": 0}
    assert not torch.equal(permutation(**key, size=100), permutation(**(key | {what: 1}), size=100))


def test_permutation_takes_every_order_equally_often():
    # 24 orders of 4 rows, 20 expected of each
    orders = [tuple(permutation(seed=1, stream=0, iteration=k, size=4).tolist()) for k in range(480)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.01


def test_permutation_puts_every_row_everywhere_equally_often():
    places = np.zeros((12, 12))
    for k in range(400):
        places[permutation(seed=2, stream=0, iteration=k, size=12).numpy(), np.arange(12)] += 1
    # each row and column of the table adds up to 400: 11² degrees of freedom
    statistic = ((places - 400 / 12) ** 2 / (400 / 12)).sum()
    assert stats.chi2.sf(statistic, 121) > 0.01


@pytest.mark.parametrize(("count", "size"), [(3, 15), (64, 3000), (7, BLOCK + 7), (7, BLOCK), (3, FEW)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_argmax_is_that_of_all_noise(count, size, spread, dtype):
    numbers = spread * torch.randn(count, size, dtype=dtype)
    numbers[:, size // 2 : size // 2 + 5] = -torch.inf
    logprobs = numbers.log_softmax(-1)
    for iteration in range(4):
        keys = row_keys(seed=1, stream=0, iteration=iteration, rows=torch.arange(count))
        everything = logprobs + gumbel(keys, size=size).to(dtype)
        assert torch.equal(gumbel_argmax(logprobs, keys), everything.argmax(-1))


def test_gumbel_argmax_of_no_number_is_a_token():
    keys = row_keys(seed=1, stream=0, iteration=0, rows=torch.arange(2))
    found = gumbel_argmax(torch.full((2, FEW), torch.nan), keys)
    assert ((found >= 0) & (found < FEW)).all()


def test_gumbel_argmax_of_a_large_vocabulary_follows_the_probabilities():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    size = FEW // 256
    logprobs = (probabilities.repeat_interleave(size) / size).log().expand(500, -1)
    counts = torch.zeros(4)
    for iteration in range(8):
        keys = row_keys(seed=3, stream=0, iteration=iteration, rows=torch.arange(500))
        counts += (gumbel_argmax(logprobs, keys) // size).bincount(minlength=4)
    assert stats.chisquare(counts, 4000 * probabilities).pvalue > 0.001
