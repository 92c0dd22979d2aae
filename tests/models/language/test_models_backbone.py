import json
import shutil

import pytest
import tiny_models
import torch
from tiny_models import context
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.markup import PLAIN_CHAT_TEMPLATE
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.types import Trajectories

ACTIONS = torch.tensor([[6, 9, 1]])
MASK = torch.ones_like(ACTIONS).bool()
PROMPT = context([5, 9, 11])
PART = Trajectories(PROMPT, ACTIONS, MASK, torch.zeros(MASK.shape))


def small(style="gpt2", **changes):
    return LanguageBackbone(**{"style": style, "width": 16, "layers": 1, "heads": 2, "context_length": 32, **changes})


def never():
    raise AssertionError("the checkpoint's own tokenizer should have been used")


def load_policy(path):
    return LanguageBackbone(checkpoint=str(path)).policy(never)


def load_reward_model(path):
    return tiny_models.reward_model_on(LanguageBackbone(checkpoint=str(path)), never)


def refused(load, path):
    """The line that a broken checkpoint ends in."""
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A policy and a reward model as runs export them."""
    root = tmp_path_factory.mktemp("exports")
    small().policy(tiny_models.tokenizer).save(root / "policy")
    tiny_models.reward_model_on(small(), tiny_models.tokenizer).save(root / "reward")
    return root


@pytest.fixture
def copy(exports, tmp_path):
    """A copy of an export, to be broken."""
    return lambda name: shutil.copytree(exports / name, tmp_path / name)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_model_from_scratch_has_the_asked_shape_and_is_the_same_each_time(style):
    first, second = (small(style, context_length=24).policy(tiny_models.tokenizer) for _ in range(2))
    assert first.context_length == 24
    assert first.model.config.hidden_size == 16
    assert first.model.get_input_embeddings().weight.shape == (15, 16)
    assert first.stop_ids == [1]
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_building_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    policy = small().policy(tiny_models.tokenizer)
    small().critic(policy)
    tiny_models.reward_model_on(small(), tiny_models.tokenizer)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"context_length": 0}, "context_length must be at least 1"),
        ({"width": 16, "heads": 3}, "width (16) over heads (3) must be a whole number"),
        ({"style": "llama", "width": 12, "heads": 4}, "an even one for llama"),
        ({"style": "bert"}, "style is 'bert'; expected gpt2 or llama"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(arguments, line):
    with pytest.raises(UserError) as caught:
        small(**arguments)
    assert line in str(caught.value)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_critic_starts_from_the_policys_trunk_at_zero(style):
    policy = small(style).policy(tiny_models.tokenizer)
    critic = small(style).critic(policy)
    own, its = policy.model.base_model.state_dict(), critic.model.base_model.state_dict()
    assert own.keys() == its.keys()
    assert all(torch.equal(own[name], its[name]) for name in own)
    assert critic.values(PART).tolist() == [[0.0, 0.0, 0.0]]
    critic.values(PART).sum().backward()
    assert critic.model.score.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in policy.parameters())


def test_reward_model_from_a_policy_keeps_its_trunk_and_starts_at_zero(exports):
    policy, reward_model = load_policy(exports / "policy"), load_reward_model(exports / "policy")
    models = policy.model, reward_model.eval().members[0].model
    hidden = [m.base_model(PROMPT.input_ids).last_hidden_state for m in models]
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-6)
    assert reward_model.score(["the cat"], ["red"]).tolist() == [0.0]


def test_critic_of_another_vocabulary_is_refused(exports):
    policy = small().policy(lambda: tiny_models.tokenizer("one", "two"))
    line = refused(lambda path: small().critic(policy, init=str(path)), exports / "reward")
    assert "its vocabulary (15 tokens) is not the policy's (7 tokens)" in line


def test_critic_that_reads_less_than_the_policy_is_refused(exports):
    policy = small(context_length=64).policy(tiny_models.tokenizer)
    line = refused(lambda path: small().critic(policy, init=str(path)), exports / "reward")
    assert "reads 32 tokens, fewer than the policy's 64" in line


def test_critic_of_an_architecture_without_classifier_points_to_the_shared_one():
    policy = tiny_models.policy("granite")
    with pytest.raises(UserError, match=r"no sequence-classification model for granite.*critic\.shared true"):
        small().critic(policy)
    assert small().critic(policy, shared=True).score.weight.shape == (1, 16)


@pytest.mark.parametrize("load", [load_policy, LearnedReward, load_reward_model])
def test_missing_checkpoint_names_the_command_that_makes_it(load, tmp_path):
    stage = "reward" if load is LearnedReward else "sft"
    for path in (tmp_path / "runs" / "x" / "export", "runs/nothing"):
        line = refused(lambda given: load(str(given)), path)
        assert "does not exist" in line
        assert f"python -m rlhf_lightning fit --config TASK.yaml --config configs/algorithms/{stage}.yaml" in line


@pytest.mark.parametrize("load", [load_policy, LearnedReward])
def test_model_of_the_hub_that_cannot_be_reached_is_one_line_about_the_hub(load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 sets it
    line = refused(load, "no-such-owner/no-such-model")
    assert "no folder here, and the hub cannot be reached; expected a connection to it" in line
    assert "fit --config" not in line


@pytest.mark.parametrize(("name", "load"), [("policy", load_policy), ("reward", LearnedReward)])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "nonsense"}'),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_corrupt_file_is_one_line(name, load, file, content, copy):
    folder = copy(name)
    (folder / file).write_bytes(content)
    refused(lambda path: load(str(path)), folder)


def test_half_a_weights_file_is_one_line(copy):
    folder = copy("policy")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "cannot be loaded" in refused(load_policy, folder)


@pytest.mark.parametrize(
    "missing", [("model.safetensors",), ("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")]
)
def test_missing_file_is_one_line(missing, copy):
    folder = copy("policy")
    for file in missing:
        (folder / file).unlink()
    refused(load_policy, folder)


@pytest.mark.parametrize("change", [{"n_layer": 2}, {"n_embd": 8}])
def test_weights_that_do_not_fill_the_model_are_one_line(change, copy):
    folder = copy("policy")
    edit(folder / "config.json", **change)
    assert "no fitting weights for transformer.h" in refused(load_policy, folder)


def test_one_kind_of_model_is_not_taken_for_the_other(exports):
    assert "is a reward model; expected a language model" in refused(load_policy, exports / "reward")
    line = refused(lambda path: LearnedReward(str(path)), exports / "policy")
    assert "no fitting weights for score.weight" in line


def test_tokenizer_of_another_model_is_one_line(copy):
    folder = copy("policy")
    tiny_models.tokenizer(*"abcdefghijklmnop").save_pretrained(folder)
    with pytest.raises(UserError, match="tokenizer has 21 tokens and the model knows 15"):
        load_policy(folder)


def test_architecture_that_would_give_wrong_numbers_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_models.config("bert", is_decoder=True))
    model.save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertLMHeadModel is not supported"):
        load_policy(tmp_path)


def test_checkpoint_without_a_chat_template_gets_the_plain_one(tmp_path):
    small().policy(lambda: tiny_models.tokenizer(template=None)).save(tmp_path / "policy")
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").chat_template is None
    policy = load_policy(tmp_path / "policy")
    assert policy.tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    policy.save(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == PLAIN_CHAT_TEMPLATE
    tiny_models.reward_model_on(small(), lambda: tiny_models.tokenizer(template=None)).save(tmp_path / "reward")
    assert LearnedReward(str(tmp_path / "reward")).model.members[0].tokenizer.chat_template == PLAIN_CHAT_TEMPLATE


def test_half_precision_checkpoint_is_read_in_float32(copy):
    folder = copy("policy")
    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert {p.dtype for p in load_policy(folder).parameters()} == {torch.float32}


def test_reloaded_policy_is_the_same(exports):
    original, loaded = small().policy(tiny_models.tokenizer), load_policy(exports / "policy")
    expected = original.evaluate(PROMPT, ACTIONS, MASK).logprobs
    torch.testing.assert_close(loaded.evaluate(PROMPT, ACTIONS, MASK).logprobs, expected, rtol=0, atol=1e-6)
    assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == tiny_models.TEMPLATE
