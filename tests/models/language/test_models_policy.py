import math

import pytest
import tiny_models
import torch
from tiny_models import context, keys
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language import policy as policy_module
from rlhf_lightning.models.language.markup import stop_ids
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.rollout.decode import EagerDecoder
from rlhf_lightning.types import TokenContext, Trajectories

PROMPTS = ([5, 9, 11], [13], [10, 12, 6, 7, 14, 8, 5])
ACTIONS = torch.tensor([[6, 9, 1], [14, 1, 0], [8, 8, 8]])
MASK = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])


def logits_by_hand(policy, row):
    """Logits before each action of one row, read alone and without padding."""
    count = int(MASK[row].sum())
    ids = torch.tensor([[*PROMPTS[row], *ACTIONS[row, :count].tolist()]])
    return policy.model(ids).logits[0, len(PROMPTS[row]) - 1 : -1]


@pytest.fixture(params=["gpt2", "llama"])
def kind(request):
    return request.param


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_evaluate_equals_log_softmax_of_logits_over_temperature(kind, temperature):
    policy = tiny_models.policy(kind, temperature=temperature).double()
    outputs = policy.evaluate(context(*PROMPTS), ACTIONS, MASK)
    for row in range(3):
        for step, logits in enumerate(logits_by_hand(policy, row)):
            weights = [math.exp(x / temperature) for x in logits.tolist()]
            shares = [weight / sum(weights) for weight in weights]
            assert outputs.logprobs[row, step].item() == pytest.approx(math.log(shares[ACTIONS[row, step]]), abs=1e-9)
            entropy = -sum(share * math.log(share) for share in shares)
            assert outputs.entropy[row, step].item() == pytest.approx(entropy, abs=1e-9)
    assert outputs.logprobs[~MASK].eq(0).all()
    assert outputs.entropy[~MASK].eq(0).all()
    assert outputs.kl is None


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_evaluate_kl_is_exact_and_of_both_tempered_distributions(kind, temperature):
    policy = tiny_models.policy(kind, temperature=temperature).double()
    other = tiny_models.policy(kind, temperature=temperature, seed=1).double()
    kl = policy.evaluate(context(*PROMPTS), ACTIONS, MASK, against=other).kl
    for row in range(3):
        own, its = (logits_by_hand(p, row).div(temperature).softmax(-1) for p in (policy, other))
        expected = [
            sum(p * math.log(p / q) for p, q in zip(a.tolist(), b.tolist(), strict=True))
            for a, b in zip(own, its, strict=True)
        ]
        assert kl[row][MASK[row]].tolist() == pytest.approx(expected, abs=1e-9)
    assert kl[~MASK].eq(0).all()
    assert policy.evaluate(context(*PROMPTS), ACTIONS, MASK, against=policy).kl.abs().max() < 1e-12


def test_evaluate_forward_kl_is_the_reverse_one_of_the_other_policy(kind):
    policy, other = (tiny_models.policy(kind, temperature=0.7, seed=seed).double() for seed in (0, 1))
    inputs = context(*PROMPTS), ACTIONS, MASK
    forward = policy.evaluate(*inputs, against=other, direction="forward")
    swapped = other.evaluate(*inputs, against=policy)
    torch.testing.assert_close(forward.kl, swapped.kl, rtol=0, atol=1e-12)
    assert (forward.kl - policy.evaluate(*inputs, against=other).kl).abs().max() > 1e-4
    assert torch.equal(forward.logprobs, policy.evaluate(*inputs).logprobs)  # its own, whatever the direction


def test_evaluate_gradient_is_that_of_the_log_softmax_by_hand(kind):
    policy = tiny_models.policy(kind, temperature=0.7).double()
    outputs = policy.evaluate(context(*PROMPTS), ACTIONS, MASK)
    (outputs.logprobs.sum() + 0.3 * outputs.entropy.sum()).backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        logprobs = (logits_by_hand(policy, row) / 0.7).log_softmax(-1)
        total = total + logprobs.gather(1, ACTIONS[row, : len(logprobs), None]).sum()
        total = total - 0.3 * (logprobs.exp() * logprobs).sum()
    total.backward()
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-10)


def test_evaluate_in_chunks_equals_all_at_once(kind, monkeypatch):
    policy = tiny_models.policy(kind).double()
    other = tiny_models.policy(kind, seed=1).double()

    def everything():
        policy.zero_grad()
        outputs = policy.evaluate(context(*PROMPTS), ACTIONS, MASK, against=other)
        (outputs.logprobs + outputs.entropy + outputs.kl).sum().backward()
        gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        return outputs.logprobs, outputs.entropy, outputs.kl, *gradients

    whole = everything()
    monkeypatch.setattr(policy_module, "chunk_tokens", lambda vocabulary: 3)
    torch.testing.assert_close(everything(), whole, rtol=1e-10, atol=1e-12)


def test_evaluate_does_not_depend_on_the_other_rows_or_on_padding(kind):
    policy = tiny_models.policy(kind)
    together = policy.evaluate(context(*PROMPTS, width=12), ACTIONS, MASK)
    for row in range(3):
        count = int(MASK[row].sum())
        alone = policy.evaluate(context(PROMPTS[row]), ACTIONS[row : row + 1, :count], MASK[row : row + 1, :count])
        torch.testing.assert_close(together.logprobs[row, :count], alone.logprobs[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.entropy[row, :count], alone.entropy[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.hidden[row, :count], alone.hidden[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("garbage", [1, 14, -100, 10**9])
def test_evaluate_ignores_what_stands_at_padding(kind, garbage):
    policy = tiny_models.policy(kind)
    clean = policy.evaluate(context(*PROMPTS), ACTIONS, MASK)
    actions = torch.where(MASK, ACTIONS, garbage)
    dirty = policy.evaluate(context(*PROMPTS, fill=garbage), actions, MASK)
    torch.testing.assert_close(dirty.logprobs, clean.logprobs, rtol=0, atol=0)
    torch.testing.assert_close(dirty.entropy, clean.entropy, rtol=0, atol=0)


def test_hidden_before_is_what_evaluate_read(kind):
    policy = tiny_models.policy(kind)
    hidden = policy.hidden_before(Trajectories(context(*PROMPTS), ACTIONS, MASK, torch.zeros(MASK.shape)))
    assert hidden.shape == (3, 3, 16)
    torch.testing.assert_close(policy.evaluate(context(*PROMPTS), ACTIONS, MASK).hidden, hidden, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_a_number_above_zero(temperature):
    with pytest.raises(UserError, match="temperature must be a number above 0"):
        tiny_models.policy(temperature=temperature)


def test_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(UserError, match="tokenizer has 15 tokens and the model knows 9"):
        tiny_models.policy(vocab_size=9)


def test_stop_ids_are_all_of_the_generation_config_after_the_tokenizers_own():
    model = tiny_models.model()
    model.generation_config.eos_token_id = [7, 1, 5]
    assert stop_ids(model, tiny_models.tokenizer()) == [1, 7, 5]
    model.generation_config.eos_token_id = 7
    assert stop_ids(model, tiny_models.tokenizer()) == [1, 7]
    assert stop_ids(model, tiny_models.tokenizer(eos=None)) == [7]
    assert stop_ids(tiny_models.classifier(), tiny_models.tokenizer(eos=None)) == [1]
    model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        stop_ids(model, tiny_models.tokenizer(eos=None))


def test_save_reloads_in_transformers_with_template_and_stop_tokens(kind, tmp_path):
    policy = tiny_models.policy(kind, temperature=1.0)
    policy.model.generation_config.eos_token_id = [1, 7]
    policy.save(tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    words = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert words.chat_template == tiny_models.TEMPLATE
    assert words.get_vocab() == policy.tokenizer.get_vocab()
    assert model.generation_config.eos_token_id == [1, 7]
    again = LanguagePolicy(model, words)
    assert again.stop_ids == [1, 7]
    first = policy.evaluate(context(*PROMPTS), ACTIONS, MASK).logprobs
    torch.testing.assert_close(again.evaluate(context(*PROMPTS), ACTIONS, MASK).logprobs, first, rtol=0, atol=0)
    logits = model(torch.tensor([PROMPTS[2]])).logits[0, -1]
    assert logits.log_softmax(-1)[8].item() == pytest.approx(first[2, 0].item(), abs=1e-5)


def test_select_keeps_what_is_evaluated(kind):
    policy = tiny_models.policy(kind)
    rollout = EagerDecoder().generate(
        policy, context(*PROMPTS), keys=keys(0, 1, 2), rows=torch.arange(3), max_new_tokens=9
    )
    whole = policy.evaluate(rollout.context, rollout.actions, rollout.action_mask).logprobs
    part = rollout.select(torch.tensor([1, 0]))
    assert isinstance(part.context, TokenContext)
    assert part.context.input_ids.shape == (2, 3)
    found = policy.evaluate(part.context, part.actions, part.action_mask).logprobs
    torch.testing.assert_close(found, whole[[1, 0], : found.shape[1]], rtol=0, atol=1e-5)
