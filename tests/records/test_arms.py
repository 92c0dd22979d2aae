from pathlib import Path

import pandas as pd
import pytest

from rlhf_lightning.records.arms import arms
from rlhf_lightning.records.runs import Run


def run(path, seed, **settings):
    """A run directory's content as far as it says what the run was told; stages of a pipeline are named so."""
    path = Path(path)
    name = "/".join(path.parts[-2:]) if path.name in ("sft", "policy") else path.name
    config = {} if seed is None else {"seed_everything": seed, "name": path.name, **settings}
    return Run(path, name, pd.DataFrame({"iteration": []}), config=config)


def grouped(*runs):
    return {arm.name: arm.seeds for arm in arms(runs)}


def test_runs_that_differ_in_the_seed_alone_are_one_arm():
    clipped = [run(f"/r/cmp-{clip}-s{seed}", seed, clip=clip) for clip in (0.1, 0.2) for seed in (2, 1, 10)]
    assert grouped(*clipped) == {"cmp-0.1": (1, 2, 10), "cmp-0.2": (1, 2, 10)}


def test_arms_stand_in_the_order_in_which_they_are_given():
    assert list(grouped(run("/r/z-1", 1, a=1), run("/r/a-1", 1, a=2), run("/r/z-2", 2, a=1))) == ["z", "a-1"]


def test_what_changes_no_number_and_where_a_run_is_kept_are_not_compared():
    one = run("/r/ppo-1", 1, runs_dir="a", trainer={"devices": 1, "max_epochs": 9})
    other = run("/r/ppo-2", 2, runs_dir="b", trainer={"devices": 4, "max_epochs": 9})
    longer = run("/r/long-3", 3, runs_dir="b", trainer={"devices": 4, "max_epochs": 10})
    assert grouped(one, other, longer) == {"ppo": (1, 2), "long-3": (3,)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("runs/sft-s1/export", "runs/sft-s2/export"),
        ("runs/seed_1/sft/export", "runs/seed_2/sft/export"),
        ("runs/sft-0.1-1/export", "runs/sft-0.1-2/export"),
        ("/r/ppo-1/sft/export", "/r/ppo-2/sft/export"),
        ("runs/shared-1/export", "runs/shared-1/export"),  # the same model for all seeds
    ],
)
def test_inputs_that_differ_by_the_seed_are_the_same(first, second):
    runs = [run("/r/ppo-1", 1, checkpoint=first), run("/r/ppo-2", 2, callbacks=None, checkpoint=second)]
    runs[0].config["callbacks"] = None
    assert [arm.seeds for arm in arms(runs)] == [(1, 2)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("runs/sft-s1/export", "runs/sft-s3/export"),  # neither is the run's own seed and shared
        ("runs/small-1/export", "runs/large-2/export"),
        ("runs/lr-0.1/export", "runs/lr-0.2/export"),
        ("gpt-1", "gpt-2"),  # no path: a model's name
        ("runs/pythia-1b/export", "runs/pythia-2b/export"),
    ],
)
def test_inputs_that_differ_otherwise_are_two_arms(first, second):
    assert len(arms([run("/r/a-1", 1, checkpoint=first), run("/r/b-2", 2, checkpoint=second)])) == 2


def test_values_in_lists_and_stages_of_a_pipeline_are_compared():
    def pipeline(seed, epochs):
        whole = run(f"/r/q-{epochs}-{seed}", None)
        for stage, settings in {"sft": {"epochs": epochs}, "policy": {"files": [f"/r/q-{epochs}-{seed}/sft"]}}.items():
            part = run(f"/r/q-{epochs}-{seed}/{stage}", seed, **settings)
            whole.stages[stage] = part
        return whole

    whole = [pipeline(seed, epochs) for epochs in (3, 5) for seed in (7, 8)]
    assert grouped(*whole) == {"q-3": (7, 8), "q-5": (7, 8)}
    assert grouped(*(one.stages["policy"] for one in whole[:2])) == {"q-3": (7, 8)}


def test_where_a_seed_repeats_names_tell_arms_apart():
    before_and_after = [run(f"/r/{version}-s{seed}", seed, a=1) for version in ("old", "new") for seed in (1, 2)]
    assert grouped(*before_and_after) == {"old": (1, 2), "new": (1, 2)}
    assert grouped(run("/r/a", 1, a=1), run("/r/b", 1, a=1)) == {"a": (1,), "b": (1,)}
    assert grouped(run("/x/ppo", 1, a=1), run("/y/ppo", 1, a=1)) == {"x/ppo": (1,), "y/ppo": (1,)}


def test_runs_without_a_seed_or_configuration_stand_alone():
    assert grouped(run("/r/a", None), run("/r/b", None)) == {"a": (None,), "b": (None,)}
    assert len(arms([run("/r/a", True, a=1), run("/r/b", True, a=1)])) == 2  # a seed drawn anew each time


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["/r/ppo/seed-1", "/r/ppo/seed-2"], "ppo"),
        (["/r/ppo-a", "/r/ppo-b"], "ppo"),
        (["/sweep/x1f", "/sweep/k9q"], "sweep"),
        (["/r/Seed 1 of ppo", "/r/Seed 2 of ppo"], "of ppo"),
    ],
)
def test_an_arm_is_called_by_what_its_runs_names_share(paths, name):
    assert grouped(*(run(path, seed, a=1) for seed, path in enumerate(paths, start=1))) == {name: (1, 2)}


def test_arms_of_one_name_are_told_apart_by_their_settings():
    drawn = zip(("k3", "m8", "p1", "z5"), (1, 2, 1, 2), (0.1, 0.1, 0.2, 0.2), strict=True)
    runs = [run(f"/sweep/{name}", seed, model={"lr": lr}) for name, seed, lr in drawn]
    assert grouped(*runs) == {"sweep, lr 0.1": (1, 2), "sweep, lr 0.2": (1, 2)}
