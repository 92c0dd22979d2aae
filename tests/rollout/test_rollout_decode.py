import logging
from functools import partial

import pytest
import tiny_models
import torch
from scipy.stats import chisquare
from tiny_models import context, keys
from transformers import GenerationConfig

from rlhf_lightning.models.language.decoding.forward_decoding import ForwardDecoding
from rlhf_lightning.models.language.decoding.step_decoding import StepDecoding
from rlhf_lightning.models.language.lora import LoRA, add_adapters
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.rollout import decode as decode_module
from rlhf_lightning.rollout.decode import EagerDecoder, FastDecoder
from rlhf_lightning.types import TokenContext

PROMPTS = ([5, 9, 11], [13], [10, 12, 6, 7, 14, 8, 5], [8, 8])
KINDS = ("gpt2", "llama", "mistral")  # mistral: a window of 4 tokens, shorter than the prompts


@pytest.fixture(params=[EagerDecoder, FastDecoder], ids=["eager", "fast"])
def engine(request):
    return request.param()


@pytest.fixture
def rollout(engine):
    return partial(sample, engine)


def sample(engine, policy, prompts=PROMPTS, numbers=None, length=16, **options):
    numbers = list(range(len(prompts))) if numbers is None else numbers
    rows = torch.tensor(numbers)
    return engine.generate(policy, context(*prompts), keys=keys(*numbers), rows=rows, max_new_tokens=length, **options)


def responses(done):
    return [row[mask].tolist() for row, mask in zip(done.actions, done.action_mask, strict=True)]


def assert_same(found, expected):
    assert responses(found) == responses(expected)
    assert found.truncated.tolist() == expected.truncated.tolist()
    for a, b, mask_a, mask_b in zip(
        found.old_logprobs, expected.old_logprobs, found.action_mask, expected.action_mask, strict=True
    ):
        torch.testing.assert_close(a[mask_a], b[mask_b], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_responses_do_not_depend_on_the_other_rows(rollout, kind):
    policy = tiny_models.policy(kind)
    together = rollout(policy)
    assert len({len(row) for row in responses(together)}) > 1
    for row, prompt in enumerate(PROMPTS):
        alone = rollout(policy, [prompt], [row])
        assert responses(alone) == responses(together)[row : row + 1]
        count = len(responses(alone)[0])
        torch.testing.assert_close(alone.old_logprobs[0], together.old_logprobs[row, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_responses_do_not_depend_on_the_order_of_rows(rollout, kind):
    policy = tiny_models.policy(kind)
    order = [2, 0, 3, 1]
    shuffled = rollout(policy, [PROMPTS[i] for i in order], order)
    assert shuffled.rows.tolist() == order
    assert_same(shuffled.select(torch.tensor([1, 3, 0, 2])), rollout(policy))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_responses_do_not_depend_on_when_finished_rows_are_dropped(rollout, kind, share, monkeypatch):
    policy = tiny_models.policy(kind)
    prompts, numbers = PROMPTS * 4, list(range(16))
    expected = rollout(policy, prompts, numbers)
    monkeypatch.setattr(decode_module, "DROP_SHARE", share)
    assert_same(rollout(policy, prompts, numbers), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_several_samples_of_a_prompt_equal_as_many_prompts(engine, rollout, kind):
    policy = tiny_models.policy(kind)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    once = engine.generate(policy, context(*PROMPTS), keys=keys(*range(12)), rows=torch.arange(12), max_new_tokens=16)
    assert_same(once, rollout(policy, repeated))
    torch.testing.assert_close(once.context.input_ids, context(*repeated).input_ids)
    torch.testing.assert_close(once.context.attention_mask, context(*repeated).attention_mask)


def test_keys_that_are_no_multiple_of_the_prompts_are_refused(engine):
    with pytest.raises(ValueError, match="3 keys and 3 rows for 2 prompts"):
        engine.generate(
            tiny_models.policy(), context([5], [6]), keys=keys(0, 1, 2), rows=torch.arange(3), max_new_tokens=2
        )


@pytest.mark.parametrize("garbage", [1, 14, -100, 10**9])
def test_what_stands_at_padding_makes_no_difference(engine, rollout, garbage):
    policy = tiny_models.policy()
    clean = rollout(policy)
    dirty = engine.generate(
        policy, context(*PROMPTS, fill=garbage), keys=keys(0, 1, 2, 3), rows=torch.arange(4), max_new_tokens=16
    )
    assert torch.equal(dirty.actions, clean.actions)
    assert torch.equal(dirty.old_logprobs, clean.old_logprobs)


def test_extra_columns_of_padding_make_no_difference(engine, rollout):
    policy = tiny_models.policy("llama")
    wide = engine.generate(
        policy, context(*PROMPTS, width=12), keys=keys(0, 1, 2, 3), rows=torch.arange(4), max_new_tokens=16
    )
    assert_same(wide, rollout(policy))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [[1], [1, 7, 12]])
def test_greedy_equals_generate_of_transformers(rollout, kind, stops):
    policy = tiny_models.policy(kind, scale=6.0).eval()
    policy.stop_ids = stops
    found = responses(rollout(policy, PROMPTS, greedy=True, length=12))
    settings = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=stops, pad_token_id=0)
    for prompt, response in zip(PROMPTS, found, strict=True):
        own = policy.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), generation_config=settings
        )
        assert response == own[0, len(prompt) :].tolist()


def test_a_response_ends_at_any_stop_id_and_nowhere_else(rollout):
    policy = tiny_models.policy()
    policy.stop_ids = [1, 7, 12]
    done = rollout(policy, PROMPTS * 16, list(range(64)), length=12)
    ends = set()
    for response, cut in zip(responses(done), done.truncated.any(-1).tolist(), strict=True):
        assert not set(response[:-1]) & {1, 7, 12}
        assert cut == (response[-1] not in (1, 7, 12))
        assert not cut or len(response) == 12
        ends.add(None if cut else response[-1])
    assert ends == {1, 7, 12, None}


def test_mask_is_a_prefix_and_width_that_of_the_longest_response(rollout):
    done = rollout(tiny_models.policy(), PROMPTS * 4, list(range(16)))
    lengths = done.lengths()
    assert done.actions.shape == done.old_logprobs.shape == (16, int(lengths.max()))
    assert torch.equal(done.action_mask, torch.arange(done.actions.shape[1]) < lengths[:, None])
    assert done.old_logprobs[~done.action_mask].eq(0).all()
    assert done.old_logprobs[done.action_mask].lt(0).all()


def test_one_token_is_enough(rollout):
    done = rollout(tiny_models.policy(), PROMPTS * 16, list(range(64)), length=1)
    assert done.actions.shape == (64, 1)
    assert done.action_mask.all()
    assert done.truncated[:, 0].tolist() == [token != 1 for token in done.actions[:, 0].tolist()]
    assert 0 < done.truncated.sum() < 64


def test_an_episode_ends_at_its_last_token_by_a_stop_or_by_the_limit(rollout):
    done = rollout(tiny_models.policy(), PROMPTS * 4, list(range(16)), length=5)
    ends = torch.arange(done.actions.shape[1]) == done.lengths()[:, None] - 1
    assert torch.equal(done.terminated | done.truncated, ends)
    assert torch.equal(done.terminated, ends & (done.actions == 1))
    assert done.terminated.any()
    assert done.truncated.any()
    assert torch.equal(done.continues, done.action_mask & ~ends)


def test_a_limit_changes_only_what_comes_after_it(rollout):
    policy = tiny_models.policy()
    short, long = (rollout(policy, PROMPTS * 4, list(range(16)), length=length) for length in (5, 16))
    for cut, whole, truncated in zip(responses(short), responses(long), short.truncated.any(-1), strict=True):
        assert cut == whole[:5]
        assert truncated == (len(whole) > 5)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_first_tokens_follow_the_tempered_softmax(engine, temperature):
    policy = tiny_models.policy(temperature=temperature, scale=8.0)
    draws = 20000
    numbers = torch.arange(draws)
    done = engine.generate(policy, context([5, 9, 11]), keys=keys(*range(draws)), rows=numbers, max_new_tokens=1)
    counts = done.actions[:, 0].bincount(minlength=15)
    probabilities = (policy.model(torch.tensor([[5, 9, 11]])).logits[0, -1] / temperature).double().softmax(-1)
    assert chisquare(counts.numpy(), (draws * probabilities).detach().numpy()).pvalue > 0.001
    wrong = (probabilities.log() * 1.2).softmax(-1)  # another temperature is noticed
    assert chisquare(counts.numpy(), (draws * wrong).detach().numpy()).pvalue < 0.001


def test_second_tokens_follow_the_softmax_given_the_first(engine):
    policy = tiny_models.policy(scale=8.0)
    policy.stop_ids = [0]
    done = engine.generate(
        policy, context([5, 9, 11]), keys=keys(*range(20000)), rows=torch.arange(20000), max_new_tokens=2
    )
    first = int(done.actions[:, 0].mode().values)
    after = done.actions[done.actions[:, 0] == first, 1]
    probabilities = policy.model(torch.tensor([[5, 9, 11, first]])).logits[0, -1].double().softmax(-1)
    counts = after.bincount(minlength=15).numpy()
    assert chisquare(counts, (len(after) * probabilities).detach().numpy()).pvalue > 0.001


def test_other_keys_give_other_responses(engine):
    policy = tiny_models.policy()
    found = [
        responses(engine.generate(policy, context(*PROMPTS), keys=k, rows=torch.arange(4), max_new_tokens=16))
        for k in (keys(0, 1, 2, 3), keys(0, 1, 2, 3), keys(0, 1, 2, 3, seed=1), keys(0, 1, 2, 3, iteration=1))
    ]
    assert found[0] == found[1]
    assert len({str(each) for each in found}) == 3


@pytest.mark.parametrize("pad", ["<pad>", "</s>", None])
def test_pad_token_makes_no_difference(rollout, pad):
    words = tiny_models.tokenizer(pad=pad)
    pad_id = {"<pad>": 0, "</s>": 1, None: None}[pad]
    policy = tiny_models.policy("gpt2", words=words, pad_token_id=pad_id)
    assert_same(rollout(policy), rollout(tiny_models.policy("gpt2")))


def test_half_precision_gives_float32_logprobs(rollout):
    policy = tiny_models.policy("llama").to(torch.bfloat16)
    done = rollout(policy)
    assert done.old_logprobs.dtype == torch.float32
    assert torch.isfinite(done.old_logprobs).all()


def test_context_is_that_of_the_prompts(engine):
    prompts = context(*PROMPTS)
    done = engine.generate(tiny_models.policy(), prompts, keys=keys(0, 1, 2, 3), rows=torch.arange(4), max_new_tokens=3)
    assert isinstance(done.context, TokenContext)
    assert torch.equal(done.context.input_ids, prompts.input_ids)
    assert torch.equal(done.context.attention_mask, prompts.attention_mask)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", tiny_models.ARCHITECTURES)
def test_engines_give_the_same_tokens_from_the_same_noise(kind, samples):
    policy = tiny_models.policy(kind)
    rows = torch.arange(samples * len(PROMPTS))
    eager, fast = (
        engine.generate(policy, context(*PROMPTS), keys=keys(*rows.tolist()), rows=rows, max_new_tokens=16)
        for engine in (EagerDecoder(), FastDecoder())
    )
    assert_same(fast, eager)
    given = policy.evaluate(fast.context, fast.actions, fast.action_mask).logprobs
    torch.testing.assert_close(fast.old_logprobs, given, rtol=0, atol=1e-5)


VARIANTS = {
    "gpt2": [{"scale_attn_by_inverse_layer_idx": True}, {"activation_function": "relu"}, {"n_inner": 20}],
    "llama": [
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
        {"head_dim": 8},
        {"tie_word_embeddings": True},
    ],
    "mistral": [{"sliding_window": None}],
    "qwen2": [{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}],
    "qwen3": [{"attention_bias": True}, {"head_dim": 8}],
}


@pytest.mark.parametrize(
    ("kind", "changes"), [(kind, changes) for kind, several in VARIANTS.items() for changes in several], ids=str
)
def test_steps_follow_the_configuration(kind, changes):
    policy = LanguagePolicy(tiny_models.model(kind, **changes), tiny_models.tokenizer())
    assert_same(sample(FastDecoder(), policy), sample(EagerDecoder(), policy))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3"])
def test_common_architectures_have_a_step_of_their_own(kind):
    state = tiny_models.policy(kind).fast_decoding(context(*PROMPTS), room=4)
    assert isinstance(state, StepDecoding)


def test_other_architectures_use_their_own_forward_and_say_so_once(caplog):
    policy = tiny_models.policy("gpt_neox")
    with caplog.at_level(logging.INFO):
        states = [policy.fast_decoding(context(*PROMPTS), room=4) for _ in range(2)]
    assert all(isinstance(state, ForwardDecoding) for state in states)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "decoding uses the model's own forward: there is no faster step for GPTNeoXForCausalLM"


def test_a_step_that_disagrees_with_the_model_is_not_used(caplog):
    policy = tiny_models.policy("llama")
    network = policy.model.model.layers[0].mlp
    network.forward = lambda inputs: 2 * type(network).forward(network, inputs)  # as if transformers had changed it
    with caplog.at_level(logging.INFO):
        assert_same(sample(FastDecoder(), policy), sample(EagerDecoder(), policy))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "the faster step does not agree with that of LlamaForCausalLM" in line


def test_steps_have_the_weights_of_the_moment():
    policy = tiny_models.policy("llama")
    before = sample(FastDecoder(), policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.7)
    assert_same(sample(FastDecoder(), policy), sample(EagerDecoder(), policy))
    assert responses(sample(FastDecoder(), policy)) != responses(before)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_steps_in_double_precision(kind):
    policy = tiny_models.policy(kind).double()
    fast, eager = sample(FastDecoder(), policy), sample(EagerDecoder(), policy)
    assert responses(fast) == responses(eager)
    assert fast.old_logprobs.dtype == torch.float64
    torch.testing.assert_close(fast.old_logprobs, eager.old_logprobs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_steps_in_mixed_precision_are_near_the_models_own(kind):
    policy = tiny_models.policy(kind, scale=4.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isinstance(policy.fast_decoding(context(*PROMPTS), room=4), StepDecoding)
        found = sample(FastDecoder(), policy)
        given = policy.evaluate(found.context, found.actions, found.action_mask).logprobs
    exact = policy.evaluate(found.context, found.actions, found.action_mask).logprobs
    mask = found.action_mask
    rounding = (given - exact)[mask].abs().mean()
    assert 0 < (found.old_logprobs - exact)[mask].abs().mean() < 2 * rounding
    assert found.old_logprobs.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_are_merged_while_decoding(kind):
    policy = tiny_models.policy(kind)
    add_adapters(policy.model, LoRA(rank=2, alpha=64.0))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    assert_same(sample(FastDecoder(), policy), sample(EagerDecoder(), policy))
