"""What the optimizers on preference pairs share: evaluation, the frozen reference, checkpoints, refusals."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from preference_helpers import build, pairs
from training_helpers import (
    TIMED,
    AtHook,
    CountsB,
    Letters,
    distance,
    fit,
    quiet_trainer,
    rollouts,
    same,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.preferred_ft import PreferredFT
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.algorithms.unlikelihood import Unlikelihood
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair

ALL = (DPO, PreferredFT, Unlikelihood)
CHECKS = {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
every_algorithm = pytest.mark.parametrize("algorithm", ALL)


@every_algorithm
def test_microbatches_change_nothing(algorithm):
    task, found = Letters(), []
    for size in (None, 1, 3):
        module = build(algorithm, task, optimization=Optimization(1e-2, microbatch_size=size))
        rows = fit(module, pairs(task), max_steps=4, precision="64-true", num_sanity_val_steps=0).untimed()
        found.append((rows, snapshot(module)))
    for rows, parameters in found[1:]:
        assert distance(parameters, found[0][1]) < 1e-9
        for row, first in zip(rows, found[0][0], strict=True):
            assert row == pytest.approx(first, rel=1e-9, abs=1e-9)


@every_algorithm
def test_every_run_is_measured_before_its_first_step_and_after_its_last(algorithm):
    task = Letters(pairs=40)  # eight steps a pass
    reported = fit(build(algorithm, task), pairs(task), max_steps=10, **CHECKS)
    rows = reported.untimed()
    evaluated = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in evaluated] == [0, 4, 8, 10]
    assert [sample["iteration"] for sample in reported.samples] == [step for step in (0, 4, 8, 10) for _ in range(7)]
    assert evaluated[0]["eval/kl_ref_sequence"] == 0
    assert evaluated[0]["eval/win_rate"] == 0.5
    assert all(row["eval/kl_ref_sequence"] > 0 for row in evaluated[1:])
    names = {"gold", "length_mean", "eos_rate", "distinct_2", "win_rate", "win_rate_low", "win_rate_high", "perplexity"}
    assert {f"eval/{name}" for name in names} <= evaluated[0].keys() == evaluated[-1].keys()
    trained = [row for row in rows if "eval/loss" not in row]
    assert [row["step"] for row in trained] == list(range(1, 11))
    assert {f"{algorithm.group}/loss", "policy/grad_norm", "lr"} <= trained[0].keys()


def test_start_is_measured_also_where_the_first_pass_ends_without_an_evaluation():
    task = Letters(pairs=10)
    rows = fit(build(DPO, task), pairs(task), max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=0).rows
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 4, 8]


def test_run_without_evaluations_measures_nothing():
    task = Letters()
    rows = fit(build(DPO, task), pairs(task), max_steps=2, limit_val_batches=0).rows
    assert [row["step"] for row in rows] == [1, 2]


def test_start_is_what_policy_optimizers_measure_at_theirs():
    """The same prompts and the same noise: two methods from one supervised model have one starting point."""
    task = Letters()
    data = rollouts(task, eval_prompts=7)
    data.setup()
    module = build(DPO, task)
    row = fit(module, pairs(task), max_steps=1, num_sanity_val_steps=0).rows[0]
    scored = data.collect_heldout(module.reference.policy)
    assert scored.measures["gold"].unique().numel() > 1
    assert row["eval/gold"] == pytest.approx(scored.measures["gold"].mean().item())


class Length(RewardSource):
    """Number of words."""

    def score(self, prompts, responses):
        return torch.tensor([float(len(response.split())) for response in responses])


def test_reward_source_judges_and_gold_measures():
    task = Letters()
    module = build(DPO, task, reward=Length())
    row = fit(module, pairs(task), max_steps=1, num_sanity_val_steps=0).rows[0]
    assert 0 <= row["eval/gold"] <= 1 < row["eval/score"]
    assert not any("reward" in name for name in module.state_dict())


def test_gold_does_not_pass_for_a_score():
    """``best.ckpt`` goes by scores, and never by gold."""
    row = fit(build(DPO, Letters()), pairs(Letters()), max_steps=1, num_sanity_val_steps=0).rows[0]
    assert "eval/gold" in row
    assert "eval/score" not in row


def test_without_a_judge_there_are_pairs_kl_and_text():
    task = Letters(gold=False)
    rows = fit(build(DPO, task), pairs(task), max_steps=2, num_sanity_val_steps=0).untimed()
    names = [name.removeprefix("eval/") for name in rows[-1]]
    assert names == [
        *("step", "loss", "accuracy", "margin", "chosen_reward", "rejected_reward"),
        *("length_mean", "eos_rate", "distinct_2", "kl_ref_sequence", "kl_ref_sequence_se", "perplexity"),
    ]


@every_algorithm
def test_reference_stays_as_it_was_to_the_bit(algorithm):
    task, start = Letters(), {}
    keep = AtHook("on_train_start", lambda trainer, module: start.update(copy.deepcopy(module.policy.state_dict())))
    module = build(algorithm, task)
    fit(module, pairs(task), keep, max_steps=4, limit_val_batches=0)
    assert same(snapshot(module.reference.policy), start)
    assert distance(snapshot(module.policy), start) > 1e-3
    assert not any(parameter.requires_grad for parameter in module.reference.policy.parameters())


def test_adapters_train_against_the_model_without_them(tmp_path):
    task = Letters()
    module = build(DPO, task, backbone=tiny(lora=LoRA(rank=2)))
    rows = fit(module, pairs(task), max_steps=3, num_sanity_val_steps=0).rows
    assert rows[0]["eval/kl_ref_sequence"] == 0
    assert rows[-1]["eval/kl_ref_sequence"] > 0
    frozen = [name for name, parameter in module.policy.named_parameters() if not parameter.requires_grad]
    own, others = dict(module.policy.named_parameters()), dict(module.reference.policy.named_parameters())
    assert frozen
    assert all(own[name] is others[name] for name in frozen)


@every_algorithm
def test_resumed_run_is_bit_identical_in_the_middle_of_a_pass(algorithm, tmp_path):
    task = Letters()

    def run(**settings):
        module = build(algorithm, task, optimization=Optimization(1e-2, "cosine", warmup=0.2))
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
        rows = fit(module, pairs(task, 3), keep, max_steps=10, **CHECKS, **settings).untimed()
        return rows, snapshot(module)

    whole = run()
    checkpoint = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    assert not any(name.startswith("reference.") for name in checkpoint["state_dict"])
    resumed = run(ckpt_path=tmp_path / "step=5.ckpt")
    assert resumed[0] == [row for row in whole[0] if row["step"] > 5]
    assert same(resumed[1], whole[1])


def test_checkpoint_with_another_reference_is_refused(tmp_path):
    task = Letters()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    fit(build(DPO, task), pairs(task), keep, max_steps=2, limit_val_batches=0)
    with pytest.raises(UserError, match="the reference policy is not the one of the checkpoint"):
        fit(build(DPO, task), pairs(task), max_steps=4, ckpt_path=tmp_path / "step=2.ckpt", seed=1)


def test_checkpoint_of_another_kind_is_refused(tmp_path):
    task = Letters()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    fit(SFT(task, tiny()), DemonstrationDataModule(task, 4), keep, max_steps=2, limit_val_batches=0)
    with pytest.raises(UserError, match="the checkpoint is not one of DPO: it names no reference policy"):
        fit(build(DPO, task), pairs(task), max_steps=4, ckpt_path=tmp_path / "step=2.ckpt")


def test_validation_of_a_checkpoint_returns_its_row(tmp_path):
    task = Letters()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    rows = fit(build(DPO, task), pairs(task), keep, max_steps=2).untimed()
    settings = {"ckpt_path": tmp_path / "step=2.ckpt", "verbose": False}
    [row] = quiet_trainer().validate(build(DPO, task), pairs(task), **settings)
    assert row["step"] == 2
    row = {name: value for name, value in row.items() if not name.startswith(TIMED)}
    assert row == pytest.approx(rows[-1], rel=1e-4, abs=1e-5)


def test_export_is_the_policy(tmp_path):
    task = Letters()
    module = build(DPO, task)
    fit(module, pairs(task), max_steps=2, limit_val_batches=0)
    module.export(tmp_path)
    exported = LanguageBackbone(checkpoint=str(tmp_path)).policy(task.tokenizer, temperature=1.0)
    assert distance(snapshot(exported), snapshot(module.policy)) == 0


def test_long_responses_lose_their_last_tokens_and_are_counted():
    task = Letters()
    cut = [
        sum(len(text.split()) + 1 > 3 for text in (pair.chosen, pair.rejected)) for pair in task.preferences("train")
    ]
    module = build(DPO, task, max_response_tokens=3)
    data = pairs(task, 13)
    rows = fit(module, data, max_steps=2, limit_val_batches=0).rows
    assert [row["data/responses_shortened"] for row in rows] == [sum(cut), 2 * sum(cut)]
    assert module.encode([PreferencePair("ant", "a b c d", "a")]).actions.shape == (2, 3)


@pytest.mark.parametrize("name", ["max_response_tokens", "max_new_tokens", "eval_prompts", "log_every"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(UserError, match=rf"model\.init_args\.{name} must be at least 1, got 0"):
        build(DPO, Letters(), **{name: 0})


def test_task_without_heldout_prompts_is_refused():
    class OnlyTraining(Letters):
        def prompts(self, split):
            return super().prompts(split) if split == "train" else []

    task = OnlyTraining()
    with pytest.raises(UserError, match="OnlyTraining gives 0 held-out prompts"):
        fit(build(DPO, task), pairs(task), max_steps=1)


@every_algorithm
def test_wrong_data_is_refused_before_training(algorithm):
    task = Letters()
    line = f"{algorithm.__name__} needs data of class PreferenceDataModule, got DemonstrationDataModule"
    with pytest.raises(UserError, match=line):
        fit(build(algorithm, task), DemonstrationDataModule(task), max_steps=1)


def test_reward_source_that_fails_names_prompt_and_step():
    class Fails(CountsB):
        def score(self, prompts, responses):
            if len(responses) > 2:  # works where it is tried
                raise ValueError("out of order")
            return super().score(prompts, responses)

    task = Letters()
    with pytest.raises(UserError, match=r"reward source Fails raised ValueError: out of order .*\(at step 1;"):
        fit(build(DPO, task, reward=Fails()), pairs(task), max_steps=1, num_sanity_val_steps=0)
