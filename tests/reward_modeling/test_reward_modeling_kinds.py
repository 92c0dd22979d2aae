"""Reward modeling of rankings, ratings, objectives, annotators and ensembles."""

import json
import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import AtHook, Letters, fit, quiet_trainer, same, snapshot, tiny

from rlhf_lightning.data.preferences import LabelDataModule, PreferenceDataModule, RankingDataModule, RatingDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.reward.architectures import SeparateEncoders
from rlhf_lightning.models.reward.combination import WorstCase
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.reward_modeling.losses import AllPairs, BradleyTerry, PlackettLuce, Regression
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.training.optimization import Optimization

RESPONSES = ["b b b", "b b a", "b a a", "a a a"]
"""From best to worst by the share of ``b``."""


def modeling(task, **settings):
    return RewardModeling(task, tiny(), **{"optimization": Optimization(1e-2), "log_every": 1, **settings})


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def rankings(path, count=40):
    task = Letters()
    orders = list(permutations(range(4)))
    records = []
    for number in range(count):
        shown = orders[number % 24]
        best_first = sorted(range(4), key=lambda place: shown[place])
        texts = [RESPONSES[place] for place in shown]
        records.append({"prompt": f"{task.noun_prompt(number)} {number}", "responses": texts, "ranking": best_first})
    return write(path, records)


def ratings(path, count=40):
    records = []
    for number in range(count):
        text = RESPONSES[number % 4]
        share = text.split().count("b") / 3
        records.append({"prompt": f"ant {number}", "response": text, "ratings": {"b": share, "a": 1 - share}})
    return write(path, records)


def opinions(path, count=60):
    """In the objective ``b`` more b is better, in ``a`` less; ann says so, and bob the opposite of both."""
    records = []
    for number in range(count):
        more, less = RESPONSES[number % 3], RESPONSES[3]
        objective, annotator = ("b", "a")[number % 2], ("ann", "bob")[number // 2 % 2]
        likes_more = (objective == "b") == (annotator == "ann")
        chosen, rejected = (more, less) if likes_more else (less, more)
        about = {"objective": objective, "annotator": annotator}
        records.append({"prompt": f"ant {number}", "chosen": chosen, "rejected": rejected, **about})
    return write(path, records)


@pytest.mark.parametrize("loss", [PlackettLuce(), AllPairs()])
def test_rankings_are_learned_from(loss, tmp_path):
    task = Letters()
    data = RankingDataModule(task, rankings(tmp_path / "r.jsonl"), batch_size=8, heldout_fraction=0.2)
    module = modeling(task, loss=loss)
    row = fit(module, data, max_steps=40, default_root_dir=tmp_path).rows[-1]
    assert row["eval/accuracy"] > 0.95
    assert row["eval/correlation_gold"] > 0.8
    assert "ceiling" in json.loads((tmp_path / "evaluation.json").read_text())
    scores = module.reward_model.score(["ant"] * 4, RESPONSES)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_gradient_of_a_ranking_is_that_of_its_permutation_probability(tmp_path):
    task, seen = Letters(), []

    def compare(trainer, module):
        model = module.reward_model
        loss = 0.0
        examples = trainer.datamodule.train_batch(trainer.global_step)
        with torch.enable_grad():
            for example in examples:
                network = model.members[0]
                scores = [network(network.encode([example.prompt], [text]))[0, 0] for text in example.responses]
                for place in range(3):
                    rest = torch.stack(scores[place:]).exp()
                    loss = loss - (rest[0] / rest.sum()).log() / len(examples)
                loss = loss + 0.3 * sum(scores) ** 2 / len(examples)
            expected = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-7, atol=1e-11)
        seen.append(loss.item())

    settings = {"precision": "64-true", "default_root_dir": tmp_path, "limit_val_batches": 0}
    data = RankingDataModule(task, rankings(tmp_path / "r.jsonl", 12), batch_size=5)
    optimization = Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=2)
    module = modeling(task, loss=PlackettLuce(), centering=0.3, optimization=optimization)
    rows = fit(module, data, AtHook("on_before_optimizer_step", compare), max_steps=3, **settings).rows
    assert [row["reward_model/loss"] for row in rows] == pytest.approx(seen)
    assert seen[0] == pytest.approx(math.log(24))  # all orders are equally likely at first


def test_ratings_are_fitted_by_objective(tmp_path):
    task = Letters()
    data = RatingDataModule(task, ratings(tmp_path / "r.jsonl"), batch_size=8, heldout_fraction=0.2)
    module = modeling(task, loss=Regression())
    row = fit(module, data, max_steps=60, default_root_dir=tmp_path).rows[-1]
    assert row["eval/mean_squared_error"] < 0.03
    assert list(module.reward_model.objectives) == ["a", "b"]
    model = module.reward_model
    a, b = model.combined(model.member_scores(["ant"] * 4, RESPONSES)).unbind(-1)
    assert b[0] > b[3] + 0.5
    assert a[0] < a[3] - 0.5


def test_each_annotator_has_heads_of_her_own_in_each_objective(tmp_path):
    task = Letters(gold=False)
    data = PreferenceDataModule(task, opinions(tmp_path / "p.jsonl"), batch_size=12, heldout_fraction=0.2)
    module = modeling(task, annotator_heads=True, objectives={"b": 1.0, "a": 0.5})
    row = fit(module, data, max_steps=60, default_root_dir=tmp_path).rows[-1]
    assert row["eval/accuracy"] > 0.95
    model = module.reward_model
    for annotator, sign in (("ann", 1), ("bob", -1)):
        b = model.output_weights("b", annotator) - model.output_weights("a", annotator)
        difference = model.raw_scores(["ant"] * 2, ["b b b", "a a a"], batch_size=2)[0] @ b
        assert sign * (difference[0] - difference[1]).item() > 1
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert {group["name"] for group in written["by_annotator"]} <= {"ann", "bob"}
    assert {group["name"] for group in written["by_objective"]} <= {"a", "b"}
    shared = modeling(task, objectives={"b": 1.0, "a": 0.5})  # one head cannot agree with both
    assert fit(shared, data, max_steps=60, default_root_dir=tmp_path / "shared").rows[-1]["eval/accuracy"] < 0.8


def test_members_start_apart_see_their_own_order_and_are_one_object(tmp_path):
    task = Letters(pairs=40, heldout=20)
    orders = {}

    def remember(trainer, module):
        for member in range(3):
            prompts = tuple(pair.prompt for pair in trainer.datamodule.train_batch(trainer.global_step, member))
            orders.setdefault(member, []).append(prompts)

    module = modeling(task, members=3, combine=WorstCase())
    data = PreferenceDataModule(task, batch_size=8)
    rows = fit(module, data, AtHook("on_train_batch_start", remember), max_steps=15, default_root_dir=tmp_path).rows
    assert len({tuple(batches) for batches in orders.values()}) == 3
    assert all(sorted(sum(o[:5], ())) == sorted(sum(orders[0][:5], ())) for o in orders.values())
    assert 0 < rows[-1]["eval/agreement"] <= 1
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(written["members"]["accuracy"]) == 3
    assert written["members"]["disagreement"] > 0
    module.export(tmp_path / "export")
    loaded = RewardModel.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(
        loaded.score(["ant"] * 4, RESPONSES), module.reward_model.score(["ant"] * 4, RESPONSES), rtol=0, atol=1e-5
    )


def test_each_member_has_the_gradient_of_its_own_loss(tmp_path):
    task, seen = Letters(), []

    def compare(trainer, module):
        for number, member in enumerate(module.reward_model.members):
            examples = trainer.datamodule.train_batch(trainer.global_step, number)
            loss = 0.0
            with torch.enable_grad():
                for pair in examples:
                    scores = member(member.encode([pair.prompt] * 2, [pair.chosen, pair.rejected]))[:, 0]
                    loss = loss - torch.nn.functional.logsigmoid(scores[0] - scores[1]) / len(examples)
                expected = torch.autograd.grad(loss, list(member.parameters()))
            for parameter, wanted in zip(member.parameters(), expected, strict=True):
                torch.testing.assert_close(parameter.grad, wanted, rtol=1e-7, atol=1e-12)
            seen.append(loss.item())

    module = modeling(task, members=2, optimization=Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3))
    settings = {"precision": "64-true", "default_root_dir": tmp_path, "limit_val_batches": 0}
    watch = AtHook("on_before_optimizer_step", compare)
    rows = fit(module, PreferenceDataModule(task, batch_size=4), watch, max_steps=2, **settings).rows
    assert [row["reward_model/loss"] for row in rows] == pytest.approx([sum(seen[:2]) / 2, sum(seen[2:]) / 2])


def test_separate_encoders_are_trained(tmp_path):
    task = Letters(pairs=40)
    module = modeling(task, architecture=SeparateEncoders())
    row = fit(module, PreferenceDataModule(task, batch_size=8), max_steps=40, default_root_dir=tmp_path).rows[-1]
    assert row["eval/accuracy"] > 0.9


def test_a_resumed_ensemble_is_bit_identical(tmp_path):
    task = Letters()

    def run(**settings):
        module = modeling(task, members=2, optimization=Optimization(1e-2, "cosine", warmup=0.2))
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
        checks = {"val_check_interval": 4, "check_val_every_n_epoch": None, "default_root_dir": tmp_path}
        rows = fit(module, PreferenceDataModule(task, batch_size=4), keep, max_steps=10, **checks, **settings)
        return rows.untimed(), snapshot(module)

    whole = run()
    resumed = run(ckpt_path=tmp_path / "step=6.ckpt")
    assert resumed[0] == [row for row in whole[0] if row["step"] > 6]
    assert same(resumed[1], whole[1])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"loss": Regression()}, "loss Regression is for feedback of kind Rating, and PreferenceDataModule gives"),
        ({"objectives": {"helpful": 1.0}}, "objectives names helpful, and the feedback none; expected the same"),
        ({"annotator_heads": True}, "annotator_heads is true, and the feedback names no annotator"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(settings, line):
    task = Letters()
    with pytest.raises(UserError, match=line):
        quiet_trainer(max_steps=1).fit(modeling(task, **settings), PreferenceDataModule(task, batch_size=4))


@pytest.mark.parametrize("loss", [BradleyTerry(), PlackettLuce(), AllPairs(), Regression()])
def test_labels_are_refused(loss, tmp_path):
    task = Letters()
    records = [{"prompt": f"ant {number}", "completion": "a", "label": number % 2} for number in range(20)]
    data = LabelDataModule(task, write(tmp_path / "labels.jsonl", records), batch_size=4)
    line = rf"loss {type(loss).__name__} is for feedback of kind .*, and LabelDataModule gives LabelledResponse$"
    with pytest.raises(UserError, match=line):
        quiet_trainer(max_steps=1).fit(modeling(task, loss=loss), data)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"members": 0}, r"model\.init_args\.members .*at least 1"),
        ({"centering": -1.0}, r"model\.init_args\.centering .*0 or more"),
        ({"head_lr": 0.0}, r"model\.init_args\.head_lr .*above 0"),
        ({"objectives": {"a": math.nan}}, r"model\.init_args\.objectives .*finite weights"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        modeling(Letters(), **settings)


def test_heldout_feedback_in_an_objective_that_nothing_is_learned_of_is_refused(tmp_path):
    task = Letters()
    data = PreferenceDataModule(task, opinions(tmp_path / "p.jsonl"), heldout_fraction=0.2)
    data.setup()
    data.heldout = [replace(data.heldout[0], objective="wit"), *data.heldout[1:]]
    with pytest.raises(UserError, match="held-out feedback names the objective wit, and training feedback only a, b"):
        quiet_trainer(max_steps=1).fit(modeling(task), data)


def test_centering_of_ratings_is_refused(tmp_path):
    data = RatingDataModule(Letters(), ratings(tmp_path / "r.jsonl"), batch_size=8, heldout_fraction=0.2)
    with pytest.raises(UserError, match="centering is for comparisons"):
        quiet_trainer(max_steps=1).fit(modeling(Letters(), loss=Regression(), centering=0.1), data)
