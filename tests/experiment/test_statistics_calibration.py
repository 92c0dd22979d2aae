"""Verdicts err as rarely as they say, over all claims together, and find what they say; more in benchmarks/results."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

from rlhf_lightning.experiment.claims.judging import judge
from rlhf_lightning.experiment.statistics.power import seeds_for_equivalence, seeds_to_detect

CALIBRATION = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "calibration.py"))
COMPARISONS = 2_000
MOST = 0.05 + 3 * CALIBRATION["error_of"](0.05, COMPARISONS) / 2
"""5 % and three standard errors of a share of 2,000: 6.5 %."""


@pytest.mark.parametrize("draw", ["normal", "lognormal", "bimodal"])
def test_equal_arms_differ_in_at_most_5_percent(draw):
    claims = CALIBRATION["differences"](4)
    # what the runs of one seed share cancels in their differences, so that it need not be varied here
    assert CALIBRATION["false_differences"](claims, draw, COMPARISONS, 5, 0.0) == 0  # 0.0625 is above 0.05
    assert CALIBRATION["false_differences"](claims, draw, COMPARISONS, 10, 0.0) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 2.0])
@pytest.mark.parametrize("draw", ["normal", "lognormal", "bimodal"])
def test_claims_of_other_kinds_err_in_at_most_5_percent(draw, common):
    assert CALIBRATION["false_differences"](CALIBRATION["mixed_claims"](), draw, COMPARISONS, 10, common) <= MOST


def test_one_claim_errs_in_hardly_less_than_5_percent():
    share = CALIBRATION["false_differences"](CALIBRATION["differences"](1), "normal", COMPARISONS, 10, 0.0)
    assert 0.035 < share <= MOST


@pytest.mark.parametrize("draw", ["normal", "lognormal", "bimodal"])
@pytest.mark.parametrize(("claims", "seeds"), [(1, 5), (1, 10), (2, 10)])
def test_equivalence_is_claimed_falsely_in_at_most_5_percent(claims, seeds, draw):
    assert CALIBRATION["false_equivalences"](draw, COMPARISONS, seeds, claims=claims, margin=3.0) <= MOST


def test_differences_and_equivalences_share_one_error_rate():
    share, two_families = CALIBRATION["false_of_both_kinds"]("normal", COMPARISONS, 20, 4.0)
    assert 0.03 < share <= MOST
    assert two_families > 0.08


@pytest.mark.parametrize("size", [1.5, 1.0, 0.5])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_power_is_as_the_formula_says(size, level):
    slack = 3 * CALIBRATION["error_of"](0.8, COMPARISONS) / 2
    detect, equal = seeds_to_detect(size, 1.0, level=level), seeds_for_equivalence(size, 1.0, level=level)
    assert 0.8 - slack < CALIBRATION["power_at"](size, detect, level, COMPARISONS) < 0.9
    assert 0.8 - slack < CALIBRATION["equivalence_power_at"](size, equal, level, COMPARISONS) < 0.95


def test_interval_of_five_seeds_covers_95_percent_and_the_percentile_bootstrap_85():
    ours, percentile = CALIBRATION["coverage"]("normal", COMPARISONS, 5)
    assert ours == pytest.approx(0.95, abs=3 * CALIBRATION["error_of"](0.95, COMPARISONS) / 2)
    assert percentile < 0.87


def test_simulated_verdicts_are_those_of_judge():
    claims = CALIBRATION["differences"](3, margin=1.5)
    values = CALIBRATION["simulated"]("normal", 8, 10, shifts={"b": 1.0, "c": 0.2, "d": -2.0})
    found = CALIBRATION["shown"](claims, values)
    seen = set()
    for comparison in range(8):
        table = pd.concat(
            pd.DataFrame({"arm": arm, "seed": range(10), "score": runs[comparison]}) for arm, runs in values.items()
        )
        for index, one in enumerate(judge(claims, table, [CALIBRATION["SCALE"]])):
            flags = {name: bool(getattr(found, name)[comparison, index]) for name in ("better", "worse", "equivalent")}
            assert one.verdict == next((name for name, flag in flags.items() if flag), "undecided")
            seen.add(str(one.verdict))
    assert len(seen) >= 3
