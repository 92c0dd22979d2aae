import math
import subprocess
import sys

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.many_runs import load_runs


def write(path, rows, config="", done=True):
    path.mkdir(parents=True)
    (path / "metrics.csv").write_text(rows)
    (path / "config.yaml").write_text(config)
    if done:
        (path / "DONE").touch()


@pytest.fixture
def folder(tmp_path):
    config = "seed_everything: {}\nname: {}\nmodel: {{class_path: a.{}, init_args: {{lr: {}, gamma: 1.0}}}}\n"
    write(
        tmp_path / "cmp" / "ppo-2",
        "iteration,objective/score,eval/gold\n0,,0.5\n1,0.1,0.75\n2,0.2,\n3,inf,\n",
        config.format(2, "ppo-2", "PPO", 0.1),
    )
    write(tmp_path / "cmp" / "ppo-1", "iteration,objective/score\n0,1\n", config.format(1, "x", "PPO", 0.2), done=False)
    for stage in ("policy", "sft"):
        write(
            tmp_path / "quick" / stage, "step,sft/loss\n5,2.5\n" if stage == "sft" else "iteration,policy/loss\n1,3\n"
        )
    (tmp_path / "quick" / "DONE").touch()
    write(tmp_path / "broken", "iteration,a\n1,x\n")
    for hidden in (".replaced", "export"):
        write(tmp_path / "cmp" / "ppo-1" / hidden, "iteration,a\n1,1\n")
    return tmp_path


def test_every_run_is_a_row_and_stages_stand_in_the_order_in_which_they_run(folder):
    names = ["broken", "cmp/ppo-1", "cmp/ppo-2", "quick/sft", "quick/policy"]
    assert load_runs(folder)["name"].tolist() == names


def test_a_row_says_what_the_run_is_and_how_its_metrics_ended(folder):
    row = load_runs(folder).set_index("name").loc["cmp/ppo-2"]
    assert (row["kind"], row["algorithm"], row["seed"], row["done"], row["last"]) == ("policy", "PPO", 2, True, 3)
    assert (row["eval/gold"], row["objective/score"]) == (0.75, 0.2)  # the last that are there and finite
    assert row["problem"] == ""
    assert math.isnan(row["sft/loss"])
    assert row["path"] == str(folder / "cmp" / "ppo-2")


def test_settings_are_those_that_differ_among_the_runs_that_have_them(folder):
    table = load_runs(folder).set_index("name")
    assert [column for column in table if column.startswith("config.")] == ["config.model.init_args.lr"]
    assert table["config.model.init_args.lr"].dropna().to_dict() == {"cmp/ppo-1": 0.2, "cmp/ppo-2": 0.1}


def test_a_run_that_cannot_be_read_is_reported_and_loses_no_other(folder):
    table = load_runs(folder).set_index("name")
    assert "broken/metrics.csv, line 2: column 'a' holds 'x'" in table.loc["broken", "problem"]
    assert (table["problem"] == "").sum() == 4
    assert not table.loc["broken", "done"]


def test_a_run_itself_is_a_table_of_one(folder):
    assert load_runs(folder / "cmp" / "ppo-2")["name"].tolist() == ["ppo-2"]


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such folder"), ("empty", "no run in it")])
def test_a_folder_without_runs_is_an_error(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        load_runs(tmp_path / name)


def test_reading_runs_needs_no_torch():
    code = "import sys; from rlhf_lightning import load_runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
