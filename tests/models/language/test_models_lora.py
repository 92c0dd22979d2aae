"""LoRA: what it computes and trains, where it starts, and what is exported of it."""

import copy
import logging
import warnings

import pytest
import tiny_models
import torch
from jsonargparse import ArgumentParser
from peft import PeftModel
from tiny_models import context, keys
from training_helpers import run_seed_is, same, snapshot
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.lora import LoRA, add_adapters, merged_state
from rlhf_lightning.models.reward.architectures import JointEncoder
from rlhf_lightning.models.state import fingerprint, frozen_copy
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.rollout.decode import EagerDecoder
from rlhf_lightning.types import Trajectories

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])
ACTIONS = torch.tensor([[6, 9, 1]])
MASK = torch.ones_like(ACTIONS).bool()
PROMPT = context([5, 9, 10])
PART = Trajectories(PROMPT, ACTIONS, MASK, torch.zeros(MASK.shape))
SMALL = LoRA(rank=2, alpha=3.0)
MIXTURES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 4},  # transposed, with biases
    # a dense layer, and in the other one experts of all tokens beside those of the routers
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4},
}


def small(style="gpt2", lora=SMALL, **changes):
    sizes = {"width": 16, "layers": 1, "heads": 2, "context_length": 32}
    return LanguageBackbone(**{"style": style, **sizes, "lora": lora, **changes})


def on(checkpoint, lora=SMALL):
    return LanguageBackbone(checkpoint=str(checkpoint), lora=lora)


def stirred(network):
    """As after some training: with adapters that do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name or name.endswith("score.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def logprobs(policy):
    return policy.evaluate(PROMPT, ACTIONS, MASK).logprobs


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def quiet_peft(base, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks for an old name
        return PeftModel.from_pretrained(base, path)


# -- what it computes ------------------------------------------------------------------------------------------


@STYLES
def test_adapted_model_starts_as_the_model_itself(style):
    adapted, plain = (small(style, lora).policy(tiny_models.tokenizer) for lora in (LoRA(rank=2), None))
    with torch.no_grad():
        mine, its = (p.evaluate(PROMPT, ACTIONS, MASK, against=plain) for p in (adapted, plain))
        assert all(torch.equal(getattr(mine, name), getattr(its, name)) for name in ("logprobs", "entropy", "hidden"))
        assert mine.kl.abs().max() < 1e-6
    prompts, rows = context([5, 9, 11], [13], [8, 8]), torch.arange(3)
    written = [
        EagerDecoder().generate(p, prompts, keys=keys(0, 1, 2), rows=rows, max_new_tokens=6) for p in (adapted, plain)
    ]
    assert torch.equal(written[0].actions, written[1].actions)
    assert torch.equal(written[0].old_logprobs, written[1].old_logprobs)


@STYLES
def test_adapter_adds_the_product_of_equation_3(style):
    model = stirred(small(style, LoRA(rank=2, alpha=3.0)).policy(tiny_models.tokenizer)).model
    name = {"gpt2": "transformer.h.0.mlp.c_fc", "llama": "model.layers.0.mlp.up_proj"}[style]
    layer, x = model.get_submodule(name), torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight.T if style == "gpt2" else layer.base_layer.weight  # Conv1D keeps it transposed
    for row, out in zip(x, layer(x), strict=True):
        expected = weight @ row + 3.0 / 2 * (b @ (a @ row))
        if style == "gpt2":
            expected = expected + layer.base_layer.bias
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_decoding_follows_the_adapters():
    policy = stirred(small().policy(tiny_models.tokenizer))
    written = EagerDecoder().generate(policy, PROMPT, keys=keys(3), rows=torch.tensor([3]), max_new_tokens=8)
    read = policy.evaluate(PROMPT, written.actions, written.action_mask).logprobs
    torch.testing.assert_close(written.old_logprobs, read, rtol=0, atol=1e-5)
    plain = small(lora=None).policy(tiny_models.tokenizer)
    assert (plain.evaluate(PROMPT, written.actions, written.action_mask).logprobs - read).abs().max() > 0.1


# -- what trains, and where it starts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "count"),
    [
        # r (in + out) per layer: 16→48, 16→16, 16→64, 64→16
        ("gpt2", 2 * (64 + 32 + 80 + 80)),
        # q, k, v, o: 16→16; gate, up: 16→42; down: 42→16
        ("llama", 2 * (4 * 32 + 3 * 58)),
    ],
)
def test_adapters_of_all_linear_layers_train_and_nothing_else(style, count):
    policy = small(style).policy(tiny_models.tokenizer)
    assert trained(policy) == {name for name, _ in policy.named_parameters() if ".lora_" in name}
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == count
    logprobs(stirred(policy)).sum().backward()
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == trained(policy)


def test_target_modules_are_the_ones_asked_for():
    def names(target):
        policy = small(lora=LoRA(target_modules=[target])).policy(tiny_models.tokenizer)
        return {name.split(".lora_")[0].removeprefix("model.transformer.h.0.") for name in trained(policy)}

    assert names("c_attn") == {"attn.c_attn"}
    assert names("c_proj") == {"attn.c_proj", "mlp.c_proj"}
    assert names("mlp.c_proj") == {"mlp.c_proj"}


@STYLES
@pytest.mark.parametrize("target", ["q_prj", "lm_head", "wte", "proj"])
def test_unknown_target_is_refused_with_those_there_are(style, target):
    known = {"gpt2": "c_attn, c_fc, c_proj", "llama": "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"}
    with pytest.raises(UserError) as caught:
        small(style, LoRA(target_modules=[target])).policy(tiny_models.tokenizer)
    model = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[style]
    assert str(caught.value) == (
        f"lora.target_modules: the trunk of {model} has no linear layer named {target!r}; "
        f"expected some of {known[style]}"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"rank": 0}, "lora.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "lora.alpha must be above 0, got 0.0"),
        ({"alpha": float("nan")}, "lora.alpha must be above 0, got nan"),
        ({"target_modules": []}, "lora.target_modules is empty"),
    ],
)
def test_lora_that_makes_no_sense_is_refused(arguments, line):
    with pytest.raises(UserError) as caught:
        LoRA(**arguments)
    assert line in str(caught.value)


def test_start_is_a_function_of_the_runs_seed():
    model = tiny_models.model("gpt2")

    def start(seed):
        with run_seed_is(seed):
            add_adapters(adapted := copy.deepcopy(model), LoRA(rank=2))
        return adapted

    torch.manual_seed(3)
    first, again, other = start(1), start(1), start(2)
    drawn = torch.rand(2)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))


def test_command_line_makes_a_lora():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    values = ["--backbone=LanguageBackbone", "--backbone.lora.rank=4", "--backbone.lora.target_modules=[c_fc]"]
    assert parser.instantiate_classes(parser.parse_args(values)).backbone.lora == LoRA(4, 16.0, ["c_fc"])
    assert parser.instantiate_classes(parser.parse_args(values[:1])).backbone.lora is None


# -- mixtures of experts ---------------------------------------------------------------------------------------


def mixture(kind="mixtral", **changes):
    model = tiny_models.model(kind, scale=3.0, **MIXTURES[kind])
    add_adapters(model, LoRA(rank=2, alpha=3.0, **changes))
    return stirred(model)


def test_each_expert_of_a_mixture_has_an_adapter_of_its_own():
    model = mixture()
    outer = model.model.layers[0].mlp.experts  # one wrapper for each of the two parameters
    experts, deltas = outer.get_base_layer(), {}
    for wrapper in (outer, outer.base_layer):
        a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        # peft stacks the experts' A along the rows, and the columns of their B by rank
        deltas[wrapper.parameter_name] = [b[:, e::4] @ a[2 * e : 2 * e + 2] * 3.0 / 2 for e in range(4)]
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    chosen, shares = torch.tensor([[0, 2], [3, 1], [2, 3]]), torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    for row, out in enumerate(outer(x, chosen, shares)):
        expected = torch.zeros(16)
        for expert, share in zip(chosen[row].tolist(), shares[row], strict=True):
            gate, up = ((experts.gate_up_proj[expert] + deltas["gate_up_proj"][expert]) @ x[row]).chunk(2)
            down = experts.down_proj[expert] + deltas["down_proj"][expert]
            expected = expected + share * (down @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_adapters_of_all_experts_and_layers_train(kind, caplog):
    with caplog.at_level(logging.WARNING):
        model = mixture(kind)
    router = {"mixtral": "gate.weight", "gpt_oss": "router.weight", "glm4_moe": "gate.weight"}[kind]
    assert f"LoRA does not adapt {router}" in caplog.text
    model(torch.tensor([list(range(5, 15))])).logits.square().sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == trained(model)
    adapted = {name.replace(".base_layer", "").split(".lora_")[0] for name in moved}
    plain = tiny_models.model(kind, **MIXTURES[kind])
    linear = {name for name, module in plain.model.named_modules() if isinstance(module, torch.nn.Linear)}
    experts = {name for name, module in plain.model.named_modules() if name.endswith(".experts")}
    assert adapted == {f"model.{name}" for name in linear | experts}


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("gate_up_proj", {"layers.1.mlp.experts"}),
        ("shared_experts.down_proj", {"layers.1.mlp.shared_experts.down_proj"}),
        ("up_proj", {"layers.0.mlp.up_proj", "layers.1.mlp.shared_experts.up_proj"}),
    ],
)
def test_targets_in_a_mixture_are_the_ones_asked_for(target, layers):
    model = mixture("glm4_moe", target_modules=[target])
    assert {name.split(".lora_")[0].removeprefix("model.") for name in trained(model)} == layers


def test_a_mixture_says_that_the_loss_of_its_routers_is_left_out(tmp_path, caplog):
    tiny_models.policy("mixtral", **MIXTURES["mixtral"]).save(tmp_path / "mixture")
    tiny_models.policy("llama").save(tmp_path / "plain")
    with caplog.at_level(logging.WARNING):
        on(tmp_path / "plain").policy(None)
        assert "routers" not in caplog.text
        on(tmp_path / "mixture", lora=None).policy(None)
    assert "mixture: the auxiliary loss of its routers is left out" in caplog.text


# -- what is exported ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "opt", *MIXTURES])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_export_is_the_policy_merged_and_the_adapter_by_itself(kind, tied, tmp_path):
    tiny_models.policy(kind, tie_word_embeddings=tied, scale=3.0, **MIXTURES.get(kind, {})).save(tmp_path / "base")
    policy = stirred(on(tmp_path / "base").policy(None))
    before, training = snapshot(policy), trained(policy)
    expected = logprobs(policy)
    policy.save(tmp_path / "export")

    assert same(snapshot(policy), before)
    assert trained(policy) == training
    assert torch.equal(logprobs(policy), expected)
    loaded = on(tmp_path / "export", lora=None).policy(None)
    torch.testing.assert_close(logprobs(loaded), expected, rtol=0, atol=2e-5)
    assert not any(".lora_" in name for name in loaded.state_dict())
    assert (logprobs(on(tmp_path / "base").policy(None)) - expected).abs().max() > 0.1

    ids = torch.tensor([[5, 9, 11, 6]])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    by_peft = quiet_peft(base, tmp_path / "export" / "adapter")
    torch.testing.assert_close(by_peft(ids).logits, policy.model(ids).logits, rtol=0, atol=2e-5)


def test_export_can_be_adapted_again(tmp_path):
    policy = stirred(small().policy(tiny_models.tokenizer))
    policy.save(tmp_path)
    again = on(tmp_path).policy(None)
    torch.testing.assert_close(logprobs(again), logprobs(policy), rtol=0, atol=1e-5)
    assert trained(again) == trained(policy)


def test_merged_state_of_a_plain_model_is_its_state():
    model = tiny_models.model("llama")
    assert same(merged_state(model), model.state_dict())


def test_adapter_is_not_taken_for_a_model(tmp_path):
    tiny_models.policy().save(tmp_path / "base")
    on(tmp_path / "base").policy(None).save(tmp_path / "export")
    adapter = tmp_path / "export" / "adapter"
    tiny_models.tokenizer().save_pretrained(adapter)
    with pytest.raises(UserError, match=r"checkpoint .*adapter is an adapter; expected a whole model: .*merge"):
        on(adapter, lora=None).policy(None)


# -- critics, reward models, references ------------------------------------------------------------------------


@STYLES
def test_critic_starts_from_the_adapted_trunk_with_adapters_of_its_own(style):
    policy = stirred(small(style).policy(tiny_models.tokenizer))
    critic = small(style).critic(policy)
    states = [network.model.base_model(PROMPT.input_ids).last_hidden_state for network in (policy, critic)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-5)
    assert critic.values(PART).tolist() == [[0.0, 0.0, 0.0]]
    assert trained(critic) == {n for n, _ in critic.named_parameters() if ".lora_" in n or n == "model.score.weight"}
    assert not {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in policy.parameters()}


def test_critic_from_a_reward_model_gets_adapters(tmp_path):
    reward_model = tiny_models.reward_model_on(small(lora=None), tiny_models.tokenizer)
    stirred(reward_model).save(tmp_path)
    network = reward_model.members[0]
    critic = small().critic(small().policy(tiny_models.tokenizer), init=str(tmp_path))
    expected = network.model.score(network.model.base_model(PROMPT.input_ids).last_hidden_state)[0, -1]
    torch.testing.assert_close(critic.values(PART)[0, :1], expected, rtol=0, atol=1e-5)
    assert any(".lora_" in name for name in trained(critic))
    assert "model.score.weight" in trained(critic)


@pytest.mark.parametrize("surprise", [False, True])
def test_reward_model_trains_adapters_and_heads_and_exports_both(surprise, tmp_path):
    tiny_models.policy("llama", scale=3.0).save(tmp_path / "base")
    reward_model = stirred(tiny_models.reward_model_on(on(tmp_path / "base"), None, JointEncoder(surprise)))
    network = reward_model.members[0]
    heads = {"model.score.weight", *({"surprise.weights"} if surprise else ())}
    assert trained(network) == heads | {n for n, _ in network.named_parameters() if ".lora_" in n}
    assert ("surprise.projection.weight" in network.state_dict()) is surprise
    expected = reward_model.score(["the cat"], ["red dog"])
    reward_model.save(tmp_path / "export")
    torch.testing.assert_close(LearnedReward(str(tmp_path / "export")).model.score(["the cat"], ["red dog"]), expected)

    ids = torch.tensor([[5, 9, 11, 6]])
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    by_peft = quiet_peft(base, tmp_path / "export" / "adapter")
    torch.testing.assert_close(by_peft(ids).logits, network.model(ids).logits, rtol=0, atol=2e-5)


def test_frozen_copy_shares_only_what_never_changes():
    policy = stirred(small().policy(tiny_models.tokenizer))
    reference = frozen_copy(policy)
    assert fingerprint(reference) == fingerprint(policy)
    assert trained(reference) == set()
    own = {name for name, p in reference.named_parameters() if p is not policy.get_parameter(name)}
    assert own == trained(policy) != set()
    before = logprobs(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    assert torch.equal(logprobs(reference), before)
    assert reference.double().model.dtype == policy.model.get_input_embeddings().weight.dtype == torch.float64

    plain = small(lora=None).policy(tiny_models.tokenizer)
    copied = frozen_copy(plain)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in plain.parameters()}
