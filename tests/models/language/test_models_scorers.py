import pytest
import tiny_models
import torch
from tiny_models import context

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.critic import SharedTrunkCritic
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.reward.architectures import JointEncoder
from rlhf_lightning.models.reward.networks import DecoderNetwork
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.models.state import fingerprint
from rlhf_lightning.types import Trajectories

KINDS = ("gpt2", "llama")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad", ["<pad>", None])
def test_critic_from_a_reward_model_values_what_the_reward_model_would_score(kind, pad, tmp_path):
    words = tiny_models.tokenizer(pad=pad)
    reward_model = tiny_models.reward_model(kind, words=words, pad_token_id=None if pad is None else 0)
    reward_model.centers.fill_(0.5)
    reward_model.save(tmp_path)
    critic = LanguageBackbone().critic(LanguagePolicy(tiny_models.model(kind), words), init=str(tmp_path))
    actions = torch.tensor([[6, 1]])
    found = critic.values(Trajectories(context([5, 9]), actions, torch.ones_like(actions).bool(), torch.zeros(1, 2)))
    network = reward_model.eval().members[0]
    hidden = network.model.base_model(torch.tensor([[5, 9, 6]])).last_hidden_state[0, 1:]
    torch.testing.assert_close(found[0], network.model.score(hidden).squeeze(-1) - 0.5, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_critic_values_are_read_before_each_action(kind):
    critic = tiny_models.critic(kind)
    prompts = ([5, 9, 11], [13])
    actions, mask = torch.tensor([[6, 9, 1], [14, 1, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    values = critic.values(Trajectories(context(*prompts, width=6), actions, mask, torch.zeros(mask.shape)))
    for row, prompt in enumerate(prompts):
        for step in range(int(mask[row].sum())):
            before = torch.tensor([[*prompt, *actions[row, :step].tolist()]])
            expected = critic.model.score(critic.model.base_model(before).last_hidden_state[0, -1]).item()
            assert values[row, step].item() == pytest.approx(expected, abs=1e-5)


def test_shared_critic_starts_at_zero_and_reads_the_trunk(tmp_path):
    critic = SharedTrunkCritic(16)
    trunk = torch.randn(2, 3, 16)
    part = Trajectories(context([5], [6]), torch.zeros(2, 3).long(), torch.ones(2, 3).bool(), torch.zeros(2, 3))
    assert critic.values(part, trunk).eq(0).all()
    with torch.no_grad():
        critic.score.weight[0, 4] = 2.0
        critic.score.bias.fill_(-1.0)
    expected = 2 * trunk[:, :, 4] - 1
    torch.testing.assert_close(critic.values(part, trunk), expected)
    with pytest.raises(ValueError, match="needs the policy's hidden states"):
        critic.values(part)
    critic.save(tmp_path / "critic")
    assert (tmp_path / "critic" / "value_head.safetensors").is_file()


def test_fingerprint_tells_apart_any_change():
    first, second = tiny_models.reward_model(), tiny_models.reward_model()
    assert fingerprint(first) == fingerprint(second)
    second.centers.fill_(1e-8)
    assert fingerprint(first) != fingerprint(second)
    second.centers.fill_(0.0)
    with torch.no_grad():
        second.members[0].model.score.weight[0, 3] += 1e-6
    assert fingerprint(first) != fingerprint(second)


def test_critic_from_what_gives_no_single_value_is_refused(tmp_path):
    model, words = tiny_models.model("llama"), tiny_models.tokenizer()
    model.save_pretrained(tmp_path / "lm")
    words.save_pretrained(tmp_path / "lm")
    backbone = LanguageBackbone(checkpoint=str(tmp_path / "lm"))
    tiny_models.reward_model_on(backbone, None, JointEncoder(surprise=True)).save(tmp_path / "surprised")
    networks = [DecoderNetwork(tiny_models.classifier("llama", seed=seed), words) for seed in (0, 1)]
    RewardModel(networks).save(tmp_path / "several")
    policy = backbone.policy(None)
    with pytest.raises(UserError, match=r"cannot start from .*surprised: .*architecture.init_args.surprise false"):
        backbone.critic(policy, init=str(tmp_path / "surprised"))
    with pytest.raises(UserError, match=r"cannot start from .*several: .*such as .*several/member_0"):
        backbone.critic(policy, init=str(tmp_path / "several"))
    assert backbone.critic(policy, init=str(tmp_path / "several" / "member_0")).outputs is None
