"""Comparisons whose responses are the same tokens once they are cut: counted, said once, and left out."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from training_helpers import Letters, fit, snapshot, tiny

from rlhf_lightning.algorithms.dpo import DPO, IPOLoss
from rlhf_lightning.algorithms.kto import KTO
from rlhf_lightning.algorithms.preferred_ft import PreferredFT
from rlhf_lightning.algorithms.simpo import SimPO
from rlhf_lightning.algorithms.unlikelihood import Unlikelihood
from rlhf_lightning.data.preferences import LabelDataModule, PreferenceDataModule, RankingDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.reward.architectures import SeparateEncoders
from rlhf_lightning.reward_modeling.losses import AllPairs, PlackettLuce
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.tasks.feedback import as_labels
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair, Ranking

GOOD = [("a b", "b a"), ("b", "a"), ("a a b", "b a b")]
EQUAL = [("a b", "a b a"), ("b b a a", "b b b"), ("a   b", "a b")]
"""The first two tokens are the same."""


class Given(Letters):
    """These pairs, in this order; three of them held out, of which ``equal_heldout`` are equal."""

    provides = Letters.provides | {"rankings", "labels"}

    def __init__(self, train, heldout=None):
        super().__init__(prompts=4, heldout=4)
        self.train, self.heldout_pairs = train, GOOD if heldout is None else heldout

    def preferences(self, split):
        given = self.train if split == "train" else self.heldout_pairs
        return [PreferencePair("ant", *two) for two in given]

    def labels(self, split):
        return [label for pair in self.preferences(split) for label in as_labels(pair)]

    def rankings(self, split):
        return [Ranking(pair.prompt, (*pair.responses, "b b")) for pair in self.preferences(split)]


def algorithm(kind, task, **settings):
    fast = Optimization(1e-2, **settings.pop("optimization", {}))
    return kind(task, tiny(), fast, max_response_tokens=2, max_new_tokens=2, eval_prompts=2, log_every=1, **settings)


def trained(build, pairs, steps=1, data=PreferenceDataModule, **settings):
    """One step on all pairs at once: the weights and the rows."""
    task = Given(pairs)
    module = build(task)
    rows = fit(module, data(task, batch_size=len(pairs)), max_steps=steps, precision="64-true", **settings).untimed()
    return snapshot(module), rows


BUILDS = {
    "DPO": lambda task: algorithm(DPO, task),
    "IPO": lambda task: algorithm(DPO, task, loss=IPOLoss()),
    "SimPO": lambda task: algorithm(SimPO, task),
    "unlikelihood": lambda task: algorithm(Unlikelihood, task),
    "in microbatches": lambda task: algorithm(DPO, task, optimization={"microbatch_size": 1}),
}


@pytest.mark.parametrize("name", BUILDS)
def test_step_is_that_of_the_pairs_that_differ(name, caplog):
    with caplog.at_level(logging.WARNING):
        weights, rows = trained(BUILDS[name], [EQUAL[0], *GOOD, *EQUAL[1:]], limit_val_batches=0)
    alone, expected = trained(BUILDS[name], GOOD, limit_val_batches=0)
    assert all(torch.allclose(weights[key], alone[key], rtol=1e-9, atol=1e-12) for key in alone)
    assert rows[0].pop("data/left_out") == 3
    assert {key: value for key, value in rows[0].items() if not key.startswith("data/")} == pytest.approx(
        {key: value for key, value in expected[0].items() if not key.startswith("data/")}
    )
    assert "data/left_out" not in expected[0]
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == [
        "3 preference pairs of this batch are left out, since their responses are the same tokens once they are cut; "
        "further ones are counted as data/left_out"
    ]


def test_left_out_pairs_are_counted_in_every_step_and_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        _, rows = trained(BUILDS["DPO"], [*GOOD, EQUAL[0]], steps=3, limit_val_batches=0)
    assert [row["data/left_out"] for row in rows] == [1, 2, 3]
    assert sum("left out" in record.getMessage() for record in caplog.records) == 1


def test_batch_of_equal_pairs_alone_changes_nothing():
    task = Given(EQUAL)
    module = algorithm(DPO, task, optimization={"weight_decay": 0.0})
    module.configure_model()
    before = copy.deepcopy(snapshot(module))
    rows = fit(module, PreferenceDataModule(task, batch_size=3), max_steps=1, limit_val_batches=0).rows
    assert (rows[0]["dpo/loss"], rows[0]["data/left_out"]) == (0, 3)
    assert all(torch.equal(before[key], value) for key, value in snapshot(module).items())


def test_preferred_ft_compares_nothing_and_leaves_nothing_out():
    _, rows = trained(lambda task: algorithm(PreferredFT, task), [*GOOD, *EQUAL], limit_val_batches=0)
    assert "data/left_out" not in rows[0]


@pytest.mark.parametrize("name", ["DPO", "IPO"])
def test_evaluation_is_that_of_the_pairs_that_differ(name):
    rows = []
    for heldout in ([EQUAL[0], *GOOD, EQUAL[2]], GOOD):
        task = Given(GOOD, heldout)
        data = PreferenceDataModule(task, batch_size=3)
        rows.append(fit(BUILDS[name](task), data, max_steps=1, precision="64-true").rows[-1])
    for metric in ("eval/loss", "eval/accuracy", "eval/margin", "eval/chosen_reward"):
        assert rows[0][metric] == pytest.approx(rows[1][metric], rel=1e-9)
    task = Given(GOOD, EQUAL)
    with pytest.raises(UserError, match="no held-out preference pairs are left: the responses of each are the same"):
        fit(algorithm(DPO, task), PreferenceDataModule(task), max_steps=1)


LONG = [(f"{start} a", f"{start} b b") for start in ("a a a a a a a a", "b a b a b a b a", "b b b b b b b b")]
"""The first eight tokens are the same, which is half the context."""


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (PreferenceDataModule, {}),
        (RankingDataModule, {"loss": PlackettLuce()}),
        (RankingDataModule, {"loss": AllPairs(), "members": 2}),
    ],
)
def test_reward_model_is_fitted_to_and_measured_on_what_differs(data, settings, tmp_path):
    def build(task):
        return RewardModeling(task, tiny(), Optimization(1e-2), log_every=1, **settings)

    ends = []
    for extra in ([LONG[0], LONG[1]], []):
        task = Given([*extra, *GOOD], [*GOOD, *extra])
        module = build(task)
        source = data(task, batch_size=len(task.train))
        rows = fit(module, source, max_steps=1, precision="64-true", default_root_dir=tmp_path).rows
        ends.append((rows[0].get("data/left_out"), snapshot(module), module.evaluation))
    assert [left_out for left_out, *_ in ends] == [2, None]
    assert all(torch.allclose(ends[0][1][key], value, rtol=1e-9, atol=1e-12) for key, value in ends[1][1].items())
    assert ends[0][2]["pairs"] == ends[1][2]["pairs"] == (3 if data is PreferenceDataModule else 9)
    assert ends[0][2]["loss"] == pytest.approx(ends[1][2]["loss"], rel=1e-9)


def test_separate_encoders_cut_later(tmp_path):
    task = Given([*GOOD, LONG[0]], [*GOOD, LONG[1]])
    module = RewardModeling(task, tiny(), Optimization(1e-2), SeparateEncoders(), log_every=1)
    rows = fit(module, PreferenceDataModule(task, batch_size=4), max_steps=1, default_root_dir=tmp_path).rows
    assert "data/left_out" not in rows[0]
    assert module.evaluation["pairs"] == 4


def test_reward_model_without_anything_to_learn_from(tmp_path):
    for train, heldout, line in ((GOOD, LONG, "no held-out preference pairs are left"), (LONG, GOOD, "to train on")):
        task = Given(train, heldout)
        module = RewardModeling(task, tiny(), Optimization(1e-2))
        with pytest.raises(UserError, match=line):
            fit(module, PreferenceDataModule(task, batch_size=3), max_steps=1, default_root_dir=tmp_path)


def labelled(pairs, **settings):
    """One step of KTO on all labels at once, with a reference point of 0."""
    task = Given(pairs)
    module = algorithm(KTO, task)
    module.statistics = lambda batch: {"reference_point": 0.0}  # which the responses of all examples have a part in
    data = LabelDataModule(task, batch_size=2 * len(pairs))
    rows = fit(module, data, max_steps=1, precision="64-true", **settings).untimed()
    return snapshot(module), rows


def test_labels_from_pairs_of_equal_responses_are_left_out():
    weights, (row,) = labelled([EQUAL[0], *GOOD, *EQUAL[1:]], limit_val_batches=0)
    alone, (expected,) = labelled(GOOD, limit_val_batches=0)
    assert all(torch.allclose(weights[key], alone[key], rtol=1e-9, atol=1e-12) for key in alone)
    assert (row["data/left_out"], "data/left_out" in expected) == (6, False)  # both of each pair
    assert row["kto/loss"] == pytest.approx(expected["kto/loss"])


def test_labels_of_single_responses_are_never_left_out():
    class Alone(Given):
        def labels(self, split):
            return [replace(label, compared_with=None) for label in super().labels(split)]

    task = Alone(EQUAL)
    (row,) = fit(
        algorithm(KTO, task), LabelDataModule(task, batch_size=6), max_steps=1, max_epochs=-1, limit_val_batches=0
    ).rows
    assert "data/left_out" not in row
