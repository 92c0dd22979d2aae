"""``prove --algorithm``: a user's own loss gets its row, and what is wrong with it is named."""

import pytest
import user_losses

from rlhf_lightning.__main__ import main
from rlhf_lightning.algorithms.preferred_ft import PreferredFT
from rlhf_lightning.proofs import hints
from rlhf_lightning.proofs.estimators import estimators_of
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.proofs.table import measure

INSTANCE = Instance()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Right", []),
        ("OverMicrobatchTokens", [hints.MICROBATCHES, hints.TOKENS]),
        ("OverTokens", [hints.TOKENS]),
        ("OverLengths", [hints.LENGTHS]),
        ("Whitened", [hints.WHITENED]),
    ],
)
def test_known_mistakes_are_named(name, expected):
    [estimator] = estimators_of(getattr(user_losses, name))
    assert hints.hints(estimator.module(INSTANCE), INSTANCE) == expected
    row = measure(estimator, INSTANCE, batch_size=2)
    assert row.exact == (not expected)
    assert row.holds  # it claims nothing
    assert (row.scale == pytest.approx(1.0, abs=1e-9)) == (not expected)


def test_a_loss_on_feedback_gets_the_row_of_the_same_loss_of_the_package():
    [own], [ours] = estimators_of(user_losses.Imitation), estimators_of(PreferredFT)
    first, second = (measure(one, INSTANCE, batch_size=2) for one in (own, ours))
    assert (first.scale, first.bias, first.cosine) == pytest.approx((second.scale, second.bias, second.cosine))


def test_prove_measures_one_algorithm_and_says_what_is_wrong(capsys):
    assert main(["prove", "--algorithm", "user_losses:OverTokens"]) == 0
    printed = capsys.readouterr().out
    [row] = [line for line in printed.splitlines() if line.startswith("| OverTokens")]
    assert "biased: " in row
    assert "cosine" in row
    assert printed.splitlines()[-1] == f"OverTokens: {hints.TOKENS}."


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nowhere:Loss", "nowhere:Loss cannot be imported (No module named 'nowhere')"),
        ("user_losses:Missing", "user_losses:Missing cannot be imported (module 'user_losses' has no attribute"),
        ("user_losses", "user_losses names no class; expected MODULE:CLASS"),
        ("user_losses:masked", "user_losses:masked is no class"),
        ("user_losses:OfRankings", "learns from rankings, which the enumerated task does not have"),
        ("rlhf_lightning.algorithms.sft:SFT", "has no expected gradient to measure: expected an OnPolicy"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(capsys, path, line):
    assert main(["prove", "--algorithm", path]) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert line in printed
