"""From run directories to tables and verdicts, and back from the folder of results."""

import json
import math

import pandas as pd
import pytest
from declared import experiment, played

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.collect import runs_table, scores, unequal
from rlhf_lightning.experiment.comparison import ArmComparison
from rlhf_lightning.experiment.loading import load_comparison
from rlhf_lightning.experiment.methods import methods
from rlhf_lightning.experiment.spec import PRIMARY
from rlhf_lightning.experiment.writing import cautions, claims_page, write_result

NOISE = (0.01, -0.02, 0.03, 0.0, -0.01, 0.02, -0.03, 0.015)


def compared(tmp_path, declared, *, without=(), **scores_of):
    """A comparison whose runs are played: the score of each arm, with the same noise for all."""
    found = ArmComparison.of(
        declared, declared.budgets["paper"], runs_dir=tmp_path / "runs", results_dir=tmp_path / "results"
    )
    found.declare()
    for run in found.planned_runs():
        if (run.arm, run.seed) not in without:
            shift = 0.02 * math.sin(run.seed * (1 + list(declared.arms).index(run.arm)))
            played(run.directory, scores_of[run.arm] + NOISE[run.seed - 1] + shift)
    return found


def failed(run, status=1):
    run.directory.mkdir(parents=True)
    (run.directory / "stage.json").write_text(json.dumps({"done": False, "status": status}))


def test_a_row_has_everything_that_is_needed_to_judge_it_again(tmp_path):
    found = compared(tmp_path, experiment(), one=0.5, two=0.8)
    row = runs_table(found.experiment, found.planned_runs()).iloc[0]
    assert (row["arm"], row["seed"], row["status"], row["used"], row["unit"]) == (
        "one",
        1,
        "finished",
        512,
        "sampled responses",
    )
    assert row[PRIMARY] == pytest.approx(0.5 + 0.01 + 0.02 * math.sin(1))
    assert (row["commit"], row["hardware"]) == ("c0ffee", "2 CPUs (x86_64)")


def test_the_better_arm_is_found_and_the_claim_held(tmp_path):
    result = compared(tmp_path, experiment(), one=0.5, two=0.8).result()
    assert result.verdicts[["verdict", "standing", "seeds"]].values.tolist() == [["better", "held", 8]]
    low, high = result.verdicts.loc[0, ["low", "high"]]
    assert low < 0.3 < high
    assert result.table["mean"].tolist() == pytest.approx(
        [result.runs[PRIMARY][::2].mean(), result.runs[PRIMARY][1::2].mean()]
    )


def test_a_failed_run_counts_as_the_worst_value_and_is_named(tmp_path):
    found = compared(tmp_path, experiment(), without={("two", 3)}, one=0.5, two=0.8)
    run = next(run for run in found.planned_runs() if (run.arm, run.seed) == ("two", 3))
    failed(run)
    result = found.result()
    table = result.table.set_index("arm")
    assert table.loc["two", ["seeds", "failed"]].tolist() == [8, 1]
    others = result.runs.query("arm == 'two' and seed != 3")[PRIMARY].sum()
    assert table.loc["two", "mean"] == pytest.approx((others + 0.0) / 8), "the scale begins at 0"
    assert result.failed[["arm", "seed", "note"]].values.tolist() == [["two", 3, "two ended with status 1"]]
    assert "1 runs failed or diverged (1 of two)" in methods(result)


def test_a_run_that_has_not_ended_is_not_counted_and_that_is_said(tmp_path):
    found = compared(tmp_path, experiment(), without={("two", 3)}, one=0.5, two=0.8)
    result = found.result()
    assert result.verdicts.loc[0, "seeds"] == 7
    assert any("15 of 16 runs finished, 1 not run" in line for line in cautions(result))


def test_arms_that_have_not_run_leave_their_claims_open(tmp_path):
    without = {("two", seed) for seed in range(1, 9)}
    result = compared(tmp_path, experiment(), without=without, one=0.5, two=0.8).result()
    assert result.judged == []
    assert "not judged: its arms have not run" in claims_page(result)


def test_groups_are_arms_with_the_mean_of_their_members(tmp_path):
    declared = experiment(groups={"both": "*"}, claims=[{"greater": ["two", "both"]}])
    result = compared(tmp_path, declared, one=0.5, two=0.8).result()
    first = result.scores.query("seed == 1").set_index("arm")[PRIMARY]
    assert first["both"] == pytest.approx((first["one"] + first["two"]) / 2)
    assert result.verdicts.loc[0, "verdict"] == "greater"


def test_tasks_are_pooled_on_their_scales(tmp_path):
    tasks = {
        "easy": {"config": "configs/tasks/bandit.yaml", "scale": [0, 0.5]},
        "hard": {"config": "configs/tasks/bandit.yaml", "scale": [0.5, 1.5]},
    }
    declared = experiment(config=None, tasks=tasks)
    found = compared(tmp_path, declared, one=0.5, two=0.8)
    table = runs_table(declared, found.planned_runs())
    raw = table.query("arm == 'two' and seed == 2").set_index("task")[PRIMARY]
    pooled = scores(declared, table).query("arm == 'two' and seed == 2").set_index("task")[PRIMARY]
    assert pooled["easy"] == pytest.approx(raw["easy"] / 0.5)
    assert pooled["hard"] == pytest.approx(raw["hard"] - 0.5)
    result = found.result()
    assert {"iqm", "iqm_low", "iqm_high"} <= set(result.table.columns)
    assert result.verdicts.loc[0, "standing"] == "held"


def test_budgets_that_turned_out_unequal_are_named(tmp_path):
    found = compared(tmp_path, experiment(), one=0.5, two=0.8)
    for run in found.planned_runs():
        if run.arm == "two":
            played(run.directory, 0.8, samples=1024)
    table = runs_table(found.experiment, found.planned_runs())
    assert unequal(found.experiment, table) == "one used 512 sampled responses, two 1,024"
    assert unequal(experiment(equal=None), table) == ""


def test_a_metric_that_no_run_logs(tmp_path):
    found = compared(tmp_path, experiment(metric={"metric": "eval/scor"}), one=0.5, two=0.8)
    with pytest.raises(UserError, match=r"no run has logged eval/scor; did you mean eval/score\?"):
        found.result()


def test_a_measure_that_no_run_has_costs_only_its_own_claims(tmp_path):
    measures = {"late": {"metric": "eval/score", "read": {"mean_of_last": 50}}}
    claims = [{"better": ["two", "one"]}, {"better": ["two", "one"], "measure": "late", "name": "Two is better late"}]
    result = compared(tmp_path, experiment(measures=measures, claims=claims), one=0.5, two=0.8).result()
    assert [one.claim.measure for one in result.judged] == ["primary"]
    assert result.not_judged == ["Two is better late"]


def test_results_are_read_back_as_they_were_written(tmp_path):
    declared = experiment(measures={"used_up": {"metric": "samples"}}, question="Which one?")
    found = compared(tmp_path, declared, one=0.5, two=0.8)
    written = found.result()
    files = write_result(written, found.results)
    assert [path.name for path in files] == ["claims.md", "table.md", "methods.md"]
    again = load_comparison(found.results)
    pd.testing.assert_frame_equal(again.verdicts, written.verdicts)
    pd.testing.assert_frame_equal(again.table, written.table, check_dtype=False)
    assert claims_page(again) == claims_page(written) == files[0].read_text()
    assert again.experiment.name == "try"
    assert again.figure("claims") is not None
    with pytest.raises(UserError, match="no figure 'arm'; did you mean arms"):
        again.figure("arm")


def test_a_folder_without_runs(tmp_path):
    found = compared(tmp_path, experiment(), one=0.5, two=0.8)
    with pytest.raises(UserError, match=r"holds no runs\.csv yet"):
        load_comparison(found.results)
    with pytest.raises(UserError, match="holds no declared comparison"):
        load_comparison(tmp_path)


def test_nothing_has_been_run(tmp_path):
    declared = experiment()
    found = ArmComparison.of(
        declared, declared.budgets["paper"], runs_dir=tmp_path / "runs", results_dir=tmp_path / "results"
    )
    with pytest.raises(UserError, match="nothing of try has been run"):
        found.result()
    found.declare()
    with pytest.raises(UserError, match="no run of try has ended yet"):
        found.result()


TUNE = {"trials": 2, "seeds": [101], "space": {"one": {"model.init_args.lam": {"values": [0.25]}}}}


def test_what_tuning_chose_is_run_and_told(tmp_path):
    declared = experiment(tune=TUNE)
    found = ArmComparison.of(
        declared, declared.budgets["paper"], runs_dir=tmp_path / "runs", results_dir=tmp_path / "results"
    )
    found.declare()
    with pytest.raises(UserError, match="the tuning of try has not ended"):
        found.planned_runs()
    for trial, score in zip(found.tuning_trials(found.arms), (0.4, 0.6), strict=True):
        played(trial.runs[0].directory, score)
    runs = found.planned_runs()
    assert runs[0].stages[-1].command[-2:] == ["--model.init_args.lam", "0.25"]
    assert "0.25" not in runs[1].stages[-1].command
    for run in runs:
        played(run.directory, 0.5 + NOISE[run.seed - 1])
    result = found.result()
    table = result.table.set_index("arm")
    assert table["trials"].to_dict() == {"one": 2, "two": 0}
    assert table.loc["one", "settings"] == {"model.init_args.lam": 0.25}
    write_result(result, found.results)
    assert load_comparison(found.results).table.set_index("arm").loc["one", "settings"] == {"model.init_args.lam": 0.25}
    assert "tuned by 2 trials" in methods(result)


def test_an_arm_that_is_run_by_itself_waits_for_its_own_tuning_alone(tmp_path):
    space = {"model.init_args.lam": {"values": [0.25]}}
    declared = experiment(tune={"trials": 2, "seeds": [101], "space": {"one": space, "two": space}}, claims=None)
    places = {"runs_dir": tmp_path / "runs", "results_dir": tmp_path / "results"}
    one = ArmComparison.of(declared, declared.budgets["paper"], arms=["one"], **places)
    one.declare()
    for trial in one.tuning_trials(["one"]):
        played(trial.runs[0].directory, 0.4 + 0.1 * trial.number)
    assert one.is_tuned()
    for run in one.planned_runs():
        assert run.stages[-1].command[-2:] == ["--model.init_args.lam", "0.25"]
        played(run.directory, 0.5)
    both = ArmComparison.of(declared, declared.budgets["paper"], **places)
    assert not both.is_tuned()
    with pytest.raises(UserError, match="the tuning of try has not ended"):
        both.planned_runs()
    assert both.result().table[["arm", "trials"]].values.tolist() == [["one", 2]]
    for trial in both.tuning_trials(["two"]):
        played(trial.runs[0].directory, 0.4)
    two = ArmComparison.of(declared, declared.budgets["paper"], arms=["two"], **places)
    for run in two.planned_runs():
        played(run.directory, 0.6)
    assert two.result().table.set_index("arm")["trials"].to_dict() == {"one": 2, "two": 2}, "of arms run before, too"


def test_claims_that_were_made_after_the_runs_say_so(tmp_path):
    compared(tmp_path, experiment(), one=0.5, two=0.8)
    later = experiment(claims=[{"better": ["one", "two"]}])
    found = compared(tmp_path, later, one=0.5, two=0.8)
    assert found.results.name == "try-paper-2"
    assert "Claims were declared before the runs" in methods(found.result())
    for run in found.planned_runs()[:3]:
        path = run.directory / "environment.json"
        path.write_text(path.read_text().replace("2999", "1999"))
    result = found.result()
    assert "declared when 3 of the runs had begun already." in cautions(result)
    assert "Claims were declared after some of the runs had begun" in methods(result)
