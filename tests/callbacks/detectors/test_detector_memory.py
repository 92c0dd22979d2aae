"""Detectors in long runs: what they keep does not grow, and they find what a look at all rows finds."""

import pickle
from statistics import median

import numpy as np
import pytest

from rlhf_lightning.callbacks.detectors import RewardHacking, default_detectors
from rlhf_lightning.callbacks.detectors.hacking import ENTROPY, KL, LOOK_BACK, SCORE
from rlhf_lightning.callbacks.detectors.history import REMEMBERED, standard_error_of_median

MONITOR = "objective/heldout_score"


def walks(count, seed):
    """Rows in which score, second opinion, KL and entropy wander; now and then one is not logged."""
    rng = np.random.default_rng(seed)
    score, monitor = (np.cumsum(rng.normal(0, 0.1, count)) for _ in range(2))
    kl = np.abs(np.cumsum(rng.normal(0, 0.02, count)))
    entropy = 2 + np.cumsum(rng.normal(0, 0.1, count))
    for n in range(count):
        row = {"iteration": n + 1, SCORE: score[n], MONITOR: monitor[n], KL: kl[n], ENTROPY: entropy[n]}
        yield {name: value for name, value in row.items() if name == "iteration" or rng.random() > 0.1}


def levels(values):
    return [median(values[max(0, end - 5) : end]) for end in range(1, len(values) + 1)]


def series(rows, name):
    return [(row["iteration"], row[name]) for row in rows if name in row]


def turned(rows):
    """Whether the second opinion has fallen while the score has not, from all rows."""
    at, values = zip(*series(rows, MONITOR), strict=True)
    if len(values) < 10:
        return False
    level = levels(values)
    peak = max(range(4, len(level)), key=level.__getitem__)
    before = [value for when, value in series(rows, SCORE) if when <= at[peak]]
    scores = [value for _, value in series(rows, SCORE)]
    fell = level[peak] - level[-1] > 4 * 2**0.5 * standard_error_of_median(values[-REMEMBERED:])
    return fell and bool(before) and median(scores[-5:]) >= median(before[-5:])


def drifted(rows):
    """Whether the KL is above its limit, and since it is has doubled at some time while the entropy did not fall."""
    kl, entropy = (levels([value for _, value in series(rows, name)]) for name in (KL, ENTROPY))
    for row in reversed(rows):
        if min(len(kl), len(entropy)) <= LOOK_BACK or kl[-1] < 0.08:
            return False
        then = kl[-1 - LOOK_BACK]
        if then >= 0.02 and kl[-1] >= 2 * then and entropy[-1] >= entropy[-1 - LOOK_BACK]:
            return True
        kl, entropy = kl[: len(kl) - (KL in row)], entropy[: len(entropy) - (ENTROPY in row)]
    return False


@pytest.mark.parametrize(("count", "seed"), [(120, 0), (120, 1), (120, 5), (2 * REMEMBERED, 3)])
def test_hacking_finds_what_a_look_at_all_rows_finds(count, seed):
    rows = list(walks(count, seed))
    signs = {"monitor": (RewardHacking(kl_token=None), turned), "kl": (RewardHacking(monitor_errors=None), drifted)}
    for name, (detector, look) in signs.items():
        found = []
        for row in rows:
            detector.observe(row)
            found.append(detector.in_trouble)
        expected = [any(MONITOR in r for r in rows[:n]) and look(rows[:n]) for n in range(1, count + 1)]
        assert found == expected, name
        assert len({*found}) == 2, name


def test_state_of_a_long_run_is_no_larger_than_of_a_short_one():
    rows = list(walks(4 * REMEMBERED, 0))
    for detector in default_detectors():
        sizes = []
        for row in rows:
            detector.observe(row)
            sizes.append(len(pickle.dumps(detector.state_dict())))
        assert max(sizes) < 1.1 * max(sizes[: 2 * REMEMBERED])  # numbers of iterations get longer
