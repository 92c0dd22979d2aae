"""Reward models of several members and outputs: weights, combinations, files."""

import json
import math

import pytest
import tiny_models
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.reward.combination import MeanScore, UncertaintyWeighted, WorstCase
from rlhf_lightning.models.reward.networks import DecoderNetwork
from rlhf_lightning.models.reward.reward_model import FILE, RewardModel
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.rewards.source import judged

PROMPTS = ["the cat sees", "a", "the red dog likes a green cow"]
RESPONSES = ["red blue", "", "cow"]
DIALOGUE = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "the dog"},
]


def member(seed, outputs=1):
    return DecoderNetwork(tiny_models.classifier("llama", seed=seed, num_labels=outputs), tiny_models.tokenizer())


def ensemble(count=3, outputs=1, **settings):
    model = RewardModel([member(seed, outputs) for seed in range(count)], **settings)
    model.centers.copy_(torch.arange(count * outputs).view(count, outputs) / 7)
    return model


def raw(network):
    """Every column of every response, one response at a time."""
    rows = [network(network.encode([p], [r]))[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    return torch.stack(rows).detach()


def test_combinations_by_hand():
    scores = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]])
    assert MeanScore()(scores).tolist() == [3, 1]
    assert WorstCase()(scores).tolist() == [1, 0]
    # variances: (4 + 1 + 9) / 3 and (1 + 1 + 4) / 3
    assert UncertaintyWeighted(0.5)(scores).tolist() == pytest.approx([3 - 7 / 3, 1 - 1])
    assert UncertaintyWeighted(0.0)(scores).tolist() == [3, 1]


@pytest.mark.parametrize("combine", [MeanScore(), WorstCase(), UncertaintyWeighted(0.7)])
def test_members_are_centered_by_themselves_and_combined(combine):
    model = ensemble(combine=combine)
    each = torch.stack([raw(m)[:, 0] - c for m, c in zip(model.members, model.centers[:, 0], strict=True)])
    by_hand = {
        MeanScore: each.mean(0),
        WorstCase: each.min(0).values,
        UncertaintyWeighted: each.mean(0) - 0.7 * ((each - each.mean(0)) ** 2).mean(0),
    }[type(combine)]
    torch.testing.assert_close(model.score(PROMPTS, RESPONSES), by_hand, rtol=0, atol=1e-5)
    assert (each.std(0) > 1e-3).all()


def test_outputs_are_objectives_times_annotators():
    model = ensemble(1, outputs=6, objectives={"kind": 2.0, "short": -1.0}, annotators=("ann", "bob", "cyd"))
    outputs = raw(model.members[0]) - model.centers[0]
    kind, short = outputs[:, :3], outputs[:, 3:]
    torch.testing.assert_close(model.score(PROMPTS, RESPONSES), 2 * kind.mean(-1) - short.mean(-1))
    torch.testing.assert_close(model.score(PROMPTS, RESPONSES, annotator="bob"), 2 * kind[:, 1] - short[:, 1])
    by_objective = model.combined(model.member_scores(PROMPTS, RESPONSES)).unbind(-1)
    assert list(model.objectives) == ["kind", "short"]
    torch.testing.assert_close(by_objective[1], short.mean(-1))
    assert model.output_weights("short", "cyd").tolist() == [0, 0, 0, 0, 0, 1]
    assert model.output_weights(None, "ann").tolist() == [2, 0, 0, -1, 0, 0]
    assert model.output_weights("kind", None).tolist() == pytest.approx([1 / 3] * 3 + [0] * 3)
    assert model.output_weights("kind", "a stranger").tolist() == pytest.approx([1 / 3] * 3 + [0] * 3)
    with pytest.raises(UserError, match="knows no annotator 'dan'; it knows ann, bob, cyd"):
        model.score(PROMPTS, RESPONSES, annotator="dan")


def test_an_ensemble_is_one_object_on_disk(tmp_path):
    model = ensemble(2, outputs=2, objectives={"kind": 1.0, "short": 0.5}, combine=UncertaintyWeighted(0.3))
    model.temperature.fill_(1.7)
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["member_0", "member_1", FILE]
    loaded = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.score(PROMPTS, RESPONSES), model.score(PROMPTS, RESPONSES))
    assert (loaded.combine, loaded.objectives) == (model.combine, model.objectives)
    assert loaded.temperature.item() == pytest.approx(1.7)
    worst = RewardModel.from_pretrained(tmp_path, combine=WorstCase())
    assert (worst.score(PROMPTS, RESPONSES) <= model.score(PROMPTS, RESPONSES) + 1e-6).any()
    assert worst.combine == WorstCase()


def test_a_missing_member_is_named(tmp_path):
    ensemble(3).save(tmp_path)
    (tmp_path / "member_1").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has no folder member_1; expected all of its 3 members"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda settings: settings.pop("centers"), "has no centers"),
        (
            lambda settings: settings.update(combine={"class": "Median"}),
            "is 'Median'; expected MeanScore",
        ),
        (lambda settings: settings.update(objectives={"a": 1, "b": 1}), "has 1 scores of a response; expected 2"),
        (lambda settings: settings.update(temperature=0), "temperature is 0; expected a number above 0"),
        (lambda settings: settings.update(temperature=math.nan), "temperature is nan; expected a number above 0"),
        (
            lambda settings: settings.update(centers=[[0.0, 1.0]]),
            r"centers are \[\[0.0, 1.0\]\]; expected 1 × 1 numbers",
        ),
        (lambda settings: settings.update(centers=0.5), "centers is 0.5; expected for each member a list of numbers"),
        (
            lambda settings: settings.update(members=["../up"]),
            "members is .*; expected a list of folders beside the file",
        ),
        (lambda settings: settings.update(members=[], network=3), "network is 3; .*members is "),
        (lambda settings: settings.update(annotators=[{}]), "annotators is .*; expected a list of names"),
        (lambda settings: settings.update(objectives=["a"]), "objectives is .*; expected a weight for each objective"),
    ],
)
def test_a_broken_settings_file_is_one_line(tmp_path, change, line):
    ensemble(1).save(tmp_path)
    settings = json.loads((tmp_path / FILE).read_text())
    change(settings)
    (tmp_path / FILE).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=line):
        RewardModel.from_pretrained(tmp_path)
    for damaged in ("{", "[" * 20_000, "[]"):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            RewardModel.from_pretrained(tmp_path)


def test_preference_is_a_calibrated_probability():
    model = ensemble(1)
    model.temperature.fill_(2.0)
    first, second = model.score(PROMPTS, RESPONSES), model.score(PROMPTS, ["a", "a", "a"])
    expected = [1 / (1 + math.exp(-(a - b) / 2)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert model.preference(PROMPTS, RESPONSES, ["a", "a", "a"]).tolist() == pytest.approx(expected, abs=1e-5)


def test_learned_reward_says_objectives_and_disagreement(tmp_path):
    model = ensemble(3, outputs=2, objectives={"kind": 1.0, "short": 0.5})
    model.save(tmp_path)
    found = judged(LearnedReward(str(tmp_path)), PROMPTS, RESPONSES)
    torch.testing.assert_close(found.scores, found.objectives["kind"] + 0.5 * found.objectives["short"])
    torch.testing.assert_close(found.scores, model.score(PROMPTS, RESPONSES))
    members = model.member_scores(PROMPTS, RESPONSES) @ torch.tensor([1.0, 0.5])
    torch.testing.assert_close(found.measures["disagreement"], members.std(0, correction=0))
    ensemble(1).save(tmp_path / "single")
    alone = judged(LearnedReward(str(tmp_path / "single")), PROMPTS, RESPONSES)
    assert (alone.objectives, alone.measures) == ({}, {})


def test_the_last_reply_is_scored_given_the_dialogue():
    model = ensemble(1)
    network = model.members[0]
    # <user> the cat <assistant> red <user> the dog <assistant> | blue </s>
    ids = torch.tensor([[3, 13, 8, 4, 5, 3, 13, 9, 4, 6, 1]])
    expected = network.model.score(network.model.base_model(ids).last_hidden_state[0, -1]).item()
    assert model.score([DIALOGUE], ["blue"]).item() == pytest.approx(expected, abs=1e-4)
    other = [DIALOGUE[0], {"role": "assistant", "content": "green"}, DIALOGUE[2]]
    assert abs(model.score([other], ["blue"]).item() - expected) > 1e-3


@pytest.mark.parametrize("objectives", [{}, {"kind": 2.0, "short": -1.0}])
def test_a_member_by_itself_is_a_reward_model(objectives, tmp_path):
    model = ensemble(3, outputs=max(len(objectives), 1), objectives=objectives, combine=WorstCase())
    model.temperature.fill_(1.7)
    model.save(tmp_path)
    expected = model.weighted(model.member_scores(PROMPTS, RESPONSES)[2])
    alone = RewardModel.from_pretrained(tmp_path / "member_2")
    torch.testing.assert_close(alone.score(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)
    assert (alone.objectives, alone.temperature.item()) == (objectives, pytest.approx(1.7))


def test_worst_case_of_what_counts_against_a_response_is_the_highest(tmp_path):
    model = ensemble(3, outputs=2, objectives={"kind": 2.0, "harm": -1.0}, combine=WorstCase())
    kind, harm = (torch.stack([raw(m) for m in model.members]) - model.centers[:, None]).unbind(-1)
    expected = 2 * kind.min(0).values - harm.max(0).values
    assert (harm.std(0) > 1e-3).all()
    torch.testing.assert_close(model.score(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)
    harm_combined = model.combined(model.member_scores(PROMPTS, RESPONSES))[:, 1]
    torch.testing.assert_close(harm_combined, harm.max(0).values, rtol=0, atol=1e-5)
    model.save(tmp_path)
    learned = judged(LearnedReward(str(tmp_path)), PROMPTS, RESPONSES)
    torch.testing.assert_close(learned.scores, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(learned.objectives["harm"], harm_combined, rtol=0, atol=1e-5)
