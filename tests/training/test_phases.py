"""What takes minutes is announced, and measured in the next row."""

import pytest
from training_helpers import Letters, Rows, fit, ppo, rollouts, tiny

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.reward_modeling.module import RewardModeling


class Phases(Rows):
    """Hears of phases and rows."""

    def on_phase(self, trainer, module, phase):
        self.rows.append({"phase": phase})


def built(kind):
    task = Letters()
    if kind == "ppo":
        return ppo(task, eval_every=2), rollouts(task), {"max_epochs": 2}
    budget = {"max_steps": 2, "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 2}
    if kind == "sft":
        return SFT(task, tiny(), log_every=1), DemonstrationDataModule(task, batch_size=4), budget
    if kind == "reward":
        return RewardModeling(task, tiny(), log_every=1), PreferenceDataModule(task, batch_size=4), budget
    module = DPO(task, tiny(), max_new_tokens=4, log_every=1)
    return module, PreferenceDataModule(task, batch_size=4), budget


@pytest.mark.parametrize("kind", ["ppo", "dpo"])
def test_loading_and_the_first_evaluation_are_announced(kind):
    module, data, budget = built(kind)
    heard = Phases()
    fit(module, data, heard, **budget)
    phases, rows = [row.get("phase") for row in heard.rows[:3]], heard.rows[2:]
    assert phases == ["builds its networks", "evaluates for the first time", None]
    assert all("phase" not in row for row in rows)


@pytest.mark.parametrize(("name", "rows_with_it"), [("loading", [0]), ("evaluation", [0, 2]), ("reference", [1, 2])])
def test_rows_of_a_policy_run_say_how_long_it_took(name, rows_with_it):
    module, data, budget = built("ppo")
    rows = fit(module, data, **budget).rows
    assert [row["iteration"] for row in rows if row.get(f"timing/{name}_seconds", 0) > 0] == rows_with_it


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sft", [("train", {"loading"}), ("train", set()), ("eval", {"evaluation"})]),
        ("reward", [("train", {"loading"}), ("train", set()), ("eval", {"evaluation"})]),
        (
            "dpo",
            [
                ("eval", {"loading", "evaluation", "reference"}),
                ("train", {"reference"}),
                ("train", {"reference"}),
                ("eval", {"evaluation", "reference"}),
            ],
        ),
    ],
)
def test_rows_of_passes_over_data_say_how_long_it_took(kind, expected):
    module, data, budget = built(kind)
    rows = fit(module, data, num_sanity_val_steps=0, **budget).rows
    timed = [{name[7:-8] for name in row if name.startswith("timing/")} for row in rows]
    kinds = ["eval" if any(name.startswith("eval/") for name in row) else "train" for row in rows]
    assert list(zip(kinds, timed, strict=True)) == expected
    assert all(value > 0 for row in rows for name, value in row.items() if name.startswith("timing/"))
