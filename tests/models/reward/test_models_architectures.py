import pytest
import tiny_models
import torch
from tiny_models import ARCHITECTURES, context, keys
from transformers import AutoModelForCausalLM

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.check import check_language_model, check_scorer
from rlhf_lightning.models.language.states import hidden_states
from rlhf_lightning.models.language.trunk import language_head, trainable
from rlhf_lightning.rollout.decode import EagerDecoder

ONE = context([5, 9, 11, 6, 14, 7, 8])
THREE = context([5, 9, 11, 6, 14, 7, 8], [13], [10, 12, 6])
REFUSED = {
    "bert": {"is_decoder": True},  # its head is a layer, a norm and the projection
    "modernbert-decoder": {},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 16},  # no cache of keys and values
    "rwkv": {"num_hidden_layers": 2, "hidden_size": 16, "attention_hidden_size": 16},  # reads padding
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_language_head_gives_the_models_own_logits(kind):
    model = trainable(tiny_models.model(kind))
    actions = torch.tensor([[6, 9, 12]])
    hidden = hidden_states(model, ONE, actions, torch.ones_like(actions).bool())
    logits = model(torch.cat([ONE.input_ids, actions], dim=1)).logits
    torch.testing.assert_close(language_head(model)(hidden), logits, rtol=0, atol=1e-5)
    assert logits.std() > 0.1


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        *((kind, torch.float32, 1e-4) for kind in ARCHITECTURES),
        # Gemma 2 has eager attention only, whose softmax is in float32 whatever the model is in.
        *((kind, torch.float64, 1e-10) for kind in ARCHITECTURES if kind != "gemma2"),
    ],
)
def test_decode_logprobs_are_those_of_teacher_forcing(kind, dtype, tolerance):
    policy = tiny_models.policy(kind, temperature=0.8).to(dtype)
    rollout = EagerDecoder().generate(
        policy, THREE, keys=keys(0, 1, 2, 3, 4, 5), rows=torch.arange(6), max_new_tokens=12
    )
    outputs = policy.evaluate(rollout.context, rollout.actions, rollout.action_mask)
    assert rollout.old_logprobs.dtype == dtype
    assert rollout.lengths().unique().numel() > 1
    torch.testing.assert_close(outputs.logprobs, rollout.old_logprobs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_decode_logprobs_are_those_of_the_model_read_without_padding(kind):
    policy = tiny_models.policy(kind).eval()
    rollout = EagerDecoder().generate(policy, THREE, keys=keys(0, 1, 2), rows=torch.arange(3), max_new_tokens=12)
    for row in range(3):
        prompt = THREE.input_ids[row][THREE.attention_mask[row]]
        response = rollout.actions[row][rollout.action_mask[row]]
        logits = policy.model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(response)), response]
        torch.testing.assert_close(rollout.old_logprobs[row][: len(response)], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_listed_architecture_passes_the_check(kind):
    model = trainable(tiny_models.model(kind, scale=1.0)).eval()
    check_language_model(model)
    assert not model.training


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_with_other_numbers_is_refused_in_one_line(kind):
    config = tiny_models.config(kind, **REFUSED[kind])
    model = trainable(AutoModelForCausalLM.from_config(config))
    with pytest.raises(UserError, match=f"(?i){kind.split('-')[0]}.*is not supported") as caught:
        check_language_model(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", {"logit_scale": 0.5}),  # a setting that this architecture does not use
        ("granite", {"logits_scaling": 4.0, "logit_scale": 0.5}),
        ("llama", {"final_logit_softcapping": 0.1}),
    ],
)
def test_check_refuses_a_head_that_reads_the_configuration_otherwise(kind, change):
    model = trainable(tiny_models.model(kind, scale=1.0, **change))
    with pytest.raises(UserError, match="outputs are off by"):
        check_language_model(model)


def test_check_refuses_dropout_that_is_left_on():
    model = tiny_models.model("opt")
    with pytest.raises(UserError, match="OPTForCausalLM is not supported"):
        check_language_model(model)
    check_language_model(trainable(model))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_training_mode_has_no_dropout(kind):
    names = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "opt": ("dropout", "attention_dropout", "layerdrop")}
    policy = tiny_models.policy(kind, **dict.fromkeys(names[kind], 0.5))
    actions = torch.tensor([[6, 9, 1]])
    mask = torch.ones_like(actions).bool()
    policy.train()
    twice = [policy.evaluate(ONE, actions, mask).logprobs for _ in range(2)]
    policy.eval()
    torch.testing.assert_close(twice[0], twice[1], rtol=0, atol=0)
    torch.testing.assert_close(twice[0], policy.evaluate(ONE, actions, mask).logprobs, rtol=0, atol=0)


def test_padding_token_keeps_learning_where_it_is_a_word_too():
    policy = tiny_models.policy("llama", pad_token_id=1)  # the end-of-sequence token
    actions = torch.tensor([[6, 7]])
    policy.evaluate(context([5, 1, 6]), actions, torch.ones_like(actions).bool()).logprobs.sum().backward()
    gradient = policy.model.get_input_embeddings().weight.grad
    assert gradient[1].abs().max() > 0
    assert gradient[8].abs().max() == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gemma2", "gpt_neox", "opt"])
def test_check_scorer_accepts_what_reads_one_score_off_each_position(kind):
    check_scorer(trainable(tiny_models.classifier(kind, scale=1.0)))


def test_check_scorer_refuses_other_heads():
    with pytest.raises(UserError, match="BertForSequenceClassification is not supported: it has no layer named score"):
        check_scorer(tiny_models.classifier("bert"))
