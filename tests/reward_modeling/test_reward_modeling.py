"""Reward modeling: its loss, its centering, its calibration and its checkpoints."""

import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import AtHook, Letters, fit, quiet_trainer, same, snapshot, tiny

from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.training.optimization import Optimization


def modeling(task, **settings):
    return RewardModeling(task, tiny(), **{"optimization": Optimization(1e-2), "log_every": 1, **settings})


def pairs(task, batch_size=4, **settings):
    return PreferenceDataModule(task, batch_size=batch_size, **settings)


def score(module, prompt, response):
    """One score, from one unpadded sequence."""
    network = module.reward_model.members[0]
    ids = [*network.tokenizer(prompt)["input_ids"], *network.tokenizer(response)["input_ids"], 0]
    model = network.model
    return model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]).squeeze()


class Rated(Letters):
    """Pairs with margins."""

    def preferences(self, split):
        found = super().preferences(split)
        for number, pair in enumerate(found):
            pair.margin = None if number % 2 else 0.1 * number
        return found


def test_gradient_is_that_of_the_mean_over_pairs(tmp_path):
    task, losses = Rated(), []

    def compare(trainer, module):
        examples = trainer.datamodule.train_batch(trainer.global_step)
        gradients = [p.grad.clone() for p in module.reward_model.parameters()]
        loss = 0.0
        with torch.enable_grad():
            for pair in examples:
                difference = score(module, pair.prompt, pair.chosen) - score(module, pair.prompt, pair.rejected)
                loss = loss + torch.log1p((-(difference - (pair.margin or 0.0))).exp()) / len(examples)
            expected = torch.autograd.grad(loss, list(module.reward_model.parameters()))
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-7, atol=1e-12)
        losses.append(loss.item())

    module = modeling(task, optimization=Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3))
    settings = {"precision": "64-true", "default_root_dir": tmp_path, "limit_val_batches": 0}
    rows = fit(module, pairs(task), AtHook("on_before_optimizer_step", compare), max_steps=3, **settings).rows
    assert [row["reward_model/loss"] for row in rows] == pytest.approx(losses)
    assert rows[0]["reward_model/accuracy"] == 0.5  # every score is 0 at the start: all are ties


def test_reward_model_learns(tmp_path):
    task = Letters(pairs=40)
    rows = fit(modeling(task), pairs(task, 8), max_steps=40, default_root_dir=tmp_path).untimed()
    assert rows[-1]["eval/accuracy"] > 0.9
    assert rows[-1]["eval/correlation_gold"] > 0.5
    assert list(rows[-1]) == [
        "step",
        "eval/loss",
        "eval/accuracy",
        "eval/margin",
        "eval/calibration_error",
        "eval/calibration_error_scaled",
        "eval/temperature",
        "eval/correlation_gold",
        "eval/spearman_gold",
        "eval/kendall_gold",
        "eval/correlation_within_gold",
        "eval/accuracy_gap",
    ]
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_scores_are_centered_on_the_heldout_responses(tmp_path, precision):
    # 10 steps, evaluations every 4: the centre must be that of the weights after the last step
    task = Letters(heldout=9)
    module = modeling(task)
    settings = {"val_check_interval": 4, "check_val_every_n_epoch": None, "default_root_dir": tmp_path}
    rows = fit(module, pairs(task), max_steps=10, precision=precision, **settings).rows
    assert [row["step"] for row in rows if "eval/loss" in row] == [4, 8, 10]
    held = task.preferences("heldout")
    prompts = [pair.prompt for pair in held] * 2
    responses = [pair.chosen for pair in held] + [pair.rejected for pair in held]
    scores = module.reward_model.score(prompts, responses)
    assert scores.std() > 0.05
    assert scores.mean().item() == pytest.approx(0, abs=1e-6)
    raw = torch.stack([score(module, *both) for both in zip(prompts, responses, strict=True)]).detach()
    assert module.reward_model.centers.item() == pytest.approx(raw.mean().item(), abs=1e-6)


def test_constant_scores_have_no_correlation_and_no_nan():
    task = Letters()
    [row] = quiet_trainer().validate(modeling(task), pairs(task), verbose=False)  # the score head starts at 0
    assert all(math.isfinite(value) for value in row.values())
    assert "eval/correlation_gold" not in row
    assert row["eval/accuracy"] == 0.5
    assert row["eval/calibration_error"] == 0


def test_part_of_the_heldout_pairs_is_compared_with_its_own_gold(tmp_path):
    task = Letters(heldout=9)
    module = modeling(task)
    row = fit(module, pairs(task), max_steps=4, limit_val_batches=1, default_root_dir=tmp_path).rows[-1]
    held = task.preferences("heldout")[:4]
    prompts, responses = [p.prompt for p in held] * 2, [p.chosen for p in held] + [p.rejected for p in held]
    scores = module.reward_model.score(prompts, responses)
    gold = task.gold().judge(prompts, responses).scores
    expected = torch.corrcoef(torch.stack([scores, gold]))[0, 1].item()
    assert row["eval/correlation_gold"] == pytest.approx(expected, abs=1e-4)


def test_evaluation_file_is_written_into_a_folder_that_does_not_exist_yet(tmp_path):
    task = Letters()
    fit(modeling(task), pairs(task), max_steps=2, default_root_dir=tmp_path / "new")
    written = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert {"accuracy", "calibration_error", "temperature", "ceiling", "bins", "biases", "train"} <= set(written)
    fit(modeling(task), pairs(task), fast_dev_run=True, default_root_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_resumed_reward_modeling_is_bit_identical_in_the_middle_of_a_pass(tmp_path):
    task = Letters()

    def run(**settings):
        module = modeling(task, optimization=Optimization(1e-2, "cosine", warmup=0.2))
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
        checks = {"val_check_interval": 4, "check_val_every_n_epoch": None, "default_root_dir": tmp_path}
        rows = fit(module, pairs(task), keep, max_steps=10, **checks, **settings)
        return rows.untimed(), snapshot(module)

    whole = run()
    resumed = run(ckpt_path=tmp_path / "step=6.ckpt")
    assert resumed[0] == [row for row in whole[0] if row["step"] > 6]
    assert same(resumed[1], whole[1])
    assert torch.load(tmp_path / "step=6.ckpt", weights_only=True)["state_dict"]["reward_model.centers"] != 0


def test_wrong_data_is_refused_before_training():
    task = Letters()
    with pytest.raises(UserError, match="RewardModeling needs data of class FeedbackDataModule"):
        fit(modeling(task), DemonstrationDataModule(task), max_steps=1)


def test_the_ceiling_which_no_step_moves_is_asked_for_once(tmp_path):
    asked = []

    class Known(Letters):
        def ceiling(self, train, heldout):
            asked.append((len(train), len(heldout)))
            return 0.9

    task = Known()
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None, "default_root_dir": tmp_path}
    rows = fit(modeling(task), pairs(task), max_steps=6, **settings).rows
    assert [row["eval/ceiling"] for row in rows if "eval/loss" in row] == [0.9] * 3
    assert asked == [(13, 7)]
