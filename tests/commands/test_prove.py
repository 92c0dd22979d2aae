import os

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.algorithms.parts.claims import BIASED, Variant
from rlhf_lightning.proofs import estimators, runs_table
from rlhf_lightning.proofs.estimators import Estimator, all_estimators
from rlhf_lightning.proofs.runs import all_runs
from rlhf_lightning.proofs.runs_table import RunRow


def shown(capsys, *arguments):
    status = main(["prove", *arguments])
    printed = capsys.readouterr().out
    return status, printed, [line for line in printed.splitlines() if line.startswith("| ")]


@pytest.mark.slow
def test_prove_finds_every_expectation_as_stated(capsys):
    status, printed, table = shown(capsys)
    assert status == 0
    assert "REFUTED" not in printed
    assert [line.split("|")[1].strip() for line in table[1:]] == [one.variant.name for one in all_estimators()]
    assert sum("< 1e-09" in line for line in table) == 14


def test_prove_fails_where_an_expectation_is_not_as_stated(capsys, monkeypatch):
    name = "REINFORCE, reward to go"
    [right] = [one for one in all_estimators() if one.variant.name == name]
    wrong = Estimator(right.algorithm, Variant("wrong", BIASED, right.variant.settings))
    monkeypatch.setattr(estimators, "all_estimators", lambda: (right, wrong))
    status, printed, table = shown(capsys, "--seed", "3", "--kl_coef", "0.1")
    assert status == 1
    assert "REFUTED" not in table[1]
    assert "REFUTED" in table[2]
    assert printed.splitlines()[-1] == "REFUTED: wrong"
    assert "seed 3" in printed
    assert "β = 0.1" in printed


def test_prove_takes_no_price_at_all(capsys, monkeypatch):
    names = ("GRPO, no std, response sum", "GRPO, no std, response sum, k3 in the loss")
    both = tuple(one for one in all_estimators() if one.variant.name in names)
    monkeypatch.setattr(estimators, "all_estimators", lambda: both)
    status, printed, table = shown(capsys, "--kl_coef", "0")
    assert status == 0
    assert "β = 0, " in printed
    assert "0.5 " in table[1]
    assert "biased: 0.0%, cosine 1.000" in table[2]  # there is nothing in the loss


@pytest.mark.slow
def test_prove_takes_larger_batches(capsys, monkeypatch):
    [short] = [one for one in all_estimators() if one.variant.name == "REINFORCE, batch mean"]
    monkeypatch.setattr(estimators, "all_estimators", lambda: (short,))
    status, printed, [_, row] = shown(capsys, "--batch_size", "3")
    assert status == 0
    assert "0.6667" in row
    assert "B = G = 3" in printed


@pytest.mark.parametrize(("resumed", "status"), [(0.0, 0), (1e-12, 1)])
def test_prove_adds_the_runs_and_fails_where_one_ends_otherwise(capsys, monkeypatch, resumed, status):
    asked = []

    def measured(chosen, folder, *, track):
        asked.append((list(track(chosen)), folder.is_dir(), os.environ["PL_GLOBAL_SEED"]))
        return [RunRow(chosen[0], 0.01, 1e-16, 1e-15, 0.0), RunRow(chosen[1], 0.01, 1e-16, 1e-15, resumed)]

    monkeypatch.setattr(estimators, "all_estimators", lambda: ())
    monkeypatch.setattr(runs_table, "measure_runs", measured)
    assert shown(capsys, "--runs", "--seed", "3")[0] == status
    assert asked == [([*all_runs()], True, "3")]
    asked.clear()
    found, printed, table = shown(capsys, "--runs")
    assert found == status
    assert [line.split("|")[1].strip() for line in table[-3:]] == ["algorithm", all_runs()[0].name, all_runs()[1].name]
    assert printed.endswith(f"\nREFUTED: {all_runs()[1].name} on {all_runs()[1].task}\n") == bool(status)
    shown(capsys)
    assert len(asked) == 1  # not unless they are asked for


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch_size", "1"], "argument --batch_size: invalid choice: 1 (choose from 2, 3, 4)"),
        (["--kl_coef=-1"], "argument --kl_coef: expected 0 or more, got '-1'"),
        (["--kl_coef", "x"], "argument --kl_coef: expected 0 or more, got 'x'"),
        (["--kl_coef", "inf"], "argument --kl_coef: expected 0 or more, got 'inf'"),
        (["--seed", "-1"], "argument --seed: expected a whole number from 0 to 2³² − 1, got '-1'"),
        (["ppo"], "unrecognized arguments: ppo"),
    ],
)
def test_prove_mistakes_are_one_line(arguments, line, capsys):
    assert main(["prove", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {line}; see python -m rlhf_lightning prove --help\n"
