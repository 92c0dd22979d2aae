import pytest

from rlhf_lightning.intervals import student_interval, welch_interval
from rlhf_lightning.plots.kit.style import plus_minus
from rlhf_lightning.records.arms import arms
from rlhf_lightning.report import page, summary
from rlhf_lightning.report.cells import Cell
from rlhf_lightning.report.contrasts import contrasts
from tests.plots.synthetic_arms import make_run, make_runs


def test_runs_of_one_seed_are_compared_with_each_other():
    # gold ends at 0.8 + 0.01 s and at 0.85 + (0.02, 0.01, 0.06)
    ppo = [make_run(0, seed) for seed in (1, 2, 3)]
    grpo = [make_run(1, seed, shift=shift) for seed, shift in ((1, 0.02), (2, 0.01), (3, 0.06))]
    (found,) = contrasts(arms([*ppo, *grpo]))
    mean, half = student_interval([0.06, 0.04, 0.08])
    assert (found.arm, found.baseline, found.measure) == ("grpo", "ppo", "Gold reward")
    assert found.difference == plus_minus(mean, half, sign=True) == "+0.060 ± 0.050"
    assert (found.seeds, found.verdict) == ("3, paired", "higher")


def test_arms_that_share_no_seeds_are_compared_by_their_means():
    ppo, grpo = [make_run(0, seed) for seed in (1, 2)], [make_run(1, seed) for seed in (3, 4, 5)]
    (found,) = contrasts(arms([*grpo, *ppo]))
    assert found.difference == plus_minus(*welch_interval([0.81, 0.82], [0.88, 0.89, 0.90]), sign=True)
    assert (found.seeds, found.verdict) == ("2 and 3, not paired", "lower")


def test_an_interval_around_zero_tells_no_arm_from_the_other():
    noisy = [make_run(1, seed, shift=shift) for seed, shift in ((1, 0.2), (2, -0.3))]
    (found,) = contrasts(arms([*make_runs(1, 2), *noisy]))
    assert found.verdict == "not told apart"


@pytest.mark.parametrize(("count", "pairs"), [(1, 0), (2, 1), (4, 6), (5, 4)])
def test_up_to_four_arms_are_compared_all_with_all(count, pairs):
    found = contrasts(arms(make_runs(count, 2)))
    assert len(found) == pairs
    if count == 5:
        assert {one.baseline for one in found} == {"ppo"}


def test_an_arm_of_one_seed_and_another_task_have_no_difference():
    elsewhere = [make_run(2, seed) for seed in (1, 2)]
    for run in elsewhere:
        run.config["task"] = {"class_path": "Arithmetic"}
    assert contrasts(arms([*make_runs(1, 2), make_run(1, 1), *elsewhere])) == []


def test_a_cell_of_an_arm_is_its_mean_with_its_interval():
    runs = [*make_runs(1, 3), make_run(0, 4, stop=5), make_run(1, 1)]
    runs[3].metrics.loc[:, "eval/gold"] = float("nan")
    rows = {row.label: row.cells for group in summary.summary(arms(runs)) for row in group.rows}
    ppo, grpo = rows["Gold reward"]
    assert ppo.text == f"0.60 → {plus_minus(*student_interval([0.81, 0.82, 0.83]))}"
    assert ppo.note == "3 of 4 seeds"
    assert grpo.text == "0.60 → 0.86"
    assert rows["Best gold reward"][0] is None  # the best on the way is no result of an arm
    assert rows["Win rate against the reference"][0].text == "72 ± 24 %"  # 80 three times and 50 once


def test_what_all_seeds_share_is_said_once():
    rows = {row.label: row.cells for group in summary.summary(arms(make_runs(1, 3))) for row in group.rows}
    assert rows["Learned from"] == [Cell("2,560", "sampled responses")]


def test_a_page_of_arms_says_arms_and_not_runs():
    text = " ".join(page.render([*make_runs(2, 3), make_run(1, 4, stop=20)], []).split())
    assert "ppo: 3 seeds, finished · grpo: 4 seeds, 3 finished" in text
    assert text.count('class="lead improved"') == 2
    assert '<td>grpo − ppo</td><td>Gold reward</td><td class="number"><b>' in text
    assert "Differences between the arms" in text
    assert "One run is one seed" not in text
    assert "<code>seed_everything</code>" not in text
    assert "<code>arm</code></td><td><code>0</code></td><td><code>1</code>" in text


def test_a_page_of_single_seeds_says_that_these_decide_nothing():
    text = page.render(make_runs(2, 1), [])
    assert "One run is one seed" in text
    assert "Differences between the arms" not in text
    assert "n = 1" not in text
