"""What the pipeline gives a policy that learns from preference pairs."""

from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.stages import Settings, build_stages, changes

CONFIGS = {
    "sft.yaml": "model: {class_path: SFT}\n",
    "reward.yaml": "data: {class_path: PreferenceDataModule}\n",
    "ppo.yaml": "data: {class_path: RolloutDataModule}\n",
    "dpo.yaml": "data: {class_path: rlhf_lightning.data.preferences.PreferenceDataModule}\n",
}
PAIRS = ["--data.init_args.pairs", "runs/q/pairs/pairs.jsonl"]


@pytest.fixture(autouse=True)
def _with_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        Path(name).write_text(text)


def commands(**own):
    """The stages' command lines, by stage, of a pipeline with these sections."""
    sections = {stage: {"config": config} if isinstance(config, str) else config for stage, config in own.items()}
    stages = build_stages(Settings(configs=[], directory=Path("runs/q"), seed=1, pipeline=sections))
    return {stage.name: stage for stage in stages}


def has(stage, words):
    line = " ".join(stage.command)
    return " ".join(words) in line


def test_policy_from_pairs_gets_the_pairs_of_the_pipeline():
    stages = commands(sft="sft.yaml", pairs={"count": 5, "labels": "gold"}, policy="dpo.yaml")
    assert has(stages["pairs"], ["--count", "5", "--labels", "gold"])
    assert has(stages["policy"], PAIRS)
    assert set(stages["policy"].inputs) == {"sft", "pairs"}
    assert not has(stages["policy"], ["reward"])


def test_policy_from_pairs_of_the_task_gets_none():
    stage = commands(sft="sft.yaml", policy="dpo.yaml")["policy"]
    assert "--data.init_args.pairs" not in stage.command
    assert set(stage.inputs) == {"sft"}


def test_policy_from_pairs_is_judged_by_the_reward_model():
    sections = {"sft": "sft.yaml", "pairs": {"count": 5}, "reward": "reward.yaml"}
    stage = commands(**sections, policy="dpo.yaml")["policy"]
    judged = ["--model.init_args.reward", "LearnedReward"]
    assert has(stage, [*judged, "--model.init_args.reward.init_args.path", "runs/q/reward/export"])
    assert set(stage.inputs) == {"sft", "pairs", "reward"}
    assert not has(commands(**sections, policy={"config": "dpo.yaml", "reward": "gold"})["policy"], ["reward"])


def test_policy_from_its_own_responses_gets_no_pairs():
    stage = commands(sft="sft.yaml", pairs={"count": 5}, reward="reward.yaml", policy="ppo.yaml")["policy"]
    assert has(stage, ["--data.init_args.reward", "LearnedReward"])
    assert "--data.init_args.pairs" not in stage.command
    assert set(stage.inputs) == {"sft", "reward"}


def test_policy_from_labels_gets_the_pairs_as_labels():
    Path("kto.yaml").write_text("data: {class_path: LabelDataModule}\n")
    stage = commands(sft="sft.yaml", pairs={"count": 5}, policy="kto.yaml")["policy"]
    assert has(stage, ["--data.init_args.labels", "runs/q/pairs/pairs.jsonl"])
    assert set(stage.inputs) == {"sft", "pairs"}


def test_last_configuration_says_what_the_policy_learns_from():
    stage = commands(sft="sft.yaml", pairs={"count": 5}, policy={"config": ["ppo.yaml", "dpo.yaml"]})["policy"]
    assert has(stage, PAIRS)


def test_data_that_is_no_mapping_is_left_to_the_stage():
    Path("odd.yaml").write_text("data: 3\n")
    assert not has(commands(sft="sft.yaml", pairs={"count": 5}, policy="odd.yaml")["policy"], PAIRS)
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        commands(sft="sft.yaml", policy="nowhere.yaml")


def test_lists_of_the_pairs_are_words_of_their_own():
    settings = {"count": 5, "objectives": ["helpful", "concise"], "annotations": 2}
    stage = commands(sft="sft.yaml", pairs=settings)["pairs"]
    assert has(stage, ["--count", "5", "--objectives", "helpful", "concise", "--annotations", "2"])
    before, after = {"command": stage.command}, {"command": [*stage.command], "version": 1, "contents": {}}
    after["command"][after["command"].index("concise")] = "harmless"
    assert changes({**before, "version": 1}, after) == ["objectives helpful concise → helpful harmless"]


def test_rewards_of_rankings_get_the_file_as_rankings():
    Path("ranked.yaml").write_text("data: {class_path: RankingDataModule}\n")
    stage = commands(sft="sft.yaml", pairs={"samples": 4}, reward="ranked.yaml")["reward"]
    assert has(stage, ["--data.init_args.rankings", "runs/q/pairs/pairs.jsonl"])
    assert "--data.init_args.pairs" not in stage.command
    assert has(commands(sft="sft.yaml", pairs={}, reward="reward.yaml")["reward"], PAIRS)
