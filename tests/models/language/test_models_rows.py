"""A row's numbers are a function of the row: not of the longest one beside it, and not of noise."""

import copy
import logging

import pytest
import tiny_models
import torch
from tiny_models import context, keys

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.check import check_language_model, check_scorer
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.trunk import context_length, known_positions, trainable
from rlhf_lightning.models.state import frozen_copy
from rlhf_lightning.rollout.decode import EagerDecoder

BORDER = 16
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
NOISY = {
    "mixtral": {**EXPERTS, "router_jitter_noise": 0.3},
    "phimoe": {**EXPERTS, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "opt": {},
}
SHORT, LONG = [5, 9, 11, 6], [(3 * i) % 10 + 5 for i in range(BORDER - 3)]
ACTIONS = torch.tensor([[6, 9, 12], [8, 7, 1]])
MASK = torch.ones_like(ACTIONS).bool()


def longrope():
    """Two sets of frequencies for heads of width 4; transformers completes the dictionary in place."""
    factors = {"short_factor": [1.0, 1.0], "long_factor": [4.0, 8.0], "factor": 2.0}
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": BORDER,
        **factors,
    }


def longrope_policy():
    return LanguagePolicy(tiny_models.model("llama", rope_parameters=longrope()), tiny_models.tokenizer())


def alone(model, prompt, actions):
    """Log-probabilities of actions, from the model itself reading one row without padding."""
    logits = model.eval()(torch.tensor([[*prompt, *actions]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(actions)), actions]


@pytest.mark.parametrize(
    ("kind", "length", "changes"),
    [
        ("llama", BORDER, {"rope_parameters": longrope()}),
        ("phi3", BORDER, {"rope_parameters": longrope(), "original_max_position_embeddings": BORDER}),
        ("llama", 32, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    ],
)
def test_rows_up_to_the_end_of_the_context_do_not_depend_on_those_beside_them(kind, length, changes):
    policy = LanguagePolicy(tiny_models.model(kind, **changes), tiny_models.tokenizer())
    assert policy.context_length == length
    long = (LONG * 3)[: policy.context_length - 3]
    together = policy.evaluate(context(SHORT, long), ACTIONS, MASK).logprobs
    for row, prompt in enumerate((SHORT, long)):
        expected = alone(policy.model, prompt, ACTIONS[row].tolist())
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-5)


def test_decoding_up_to_the_border_gives_the_numbers_of_the_whole_row():
    policy = longrope_policy()
    prompts = (SHORT, LONG[:10])
    written = EagerDecoder().generate(
        policy, context(*prompts), keys=keys(0, 1), rows=torch.arange(2), max_new_tokens=BORDER - 10
    )
    for row, prompt in enumerate(prompts):
        actions = written.actions[row][written.action_mask[row]].tolist()
        expected = alone(policy.model, prompt, actions)
        torch.testing.assert_close(written.old_logprobs[row, : len(actions)], expected, rtol=0, atol=1e-5)


def test_a_row_beyond_the_border_is_refused():
    policy = longrope_policy()
    with pytest.raises(UserError, match=f"a row has {BORDER + 1} tokens; expected at most {BORDER}"):
        policy.evaluate(context(SHORT, [*LONG, 5]), ACTIONS, MASK)


def test_a_checkpoint_says_in_one_line_where_its_context_ends(tmp_path, caplog):
    longrope_policy().save(tmp_path)
    with caplog.at_level(logging.WARNING):
        policy = LanguageBackbone(checkpoint=str(tmp_path)).policy(None)
    assert policy.context_length == BORDER
    (line,) = [record.getMessage() for record in caplog.records if "context ends" in record.getMessage()]
    assert f"its context ends at {BORDER} tokens rather than 32" in line


def test_the_border_may_stand_below_a_kind_of_layer():
    config = tiny_models.model().config
    config.rope_parameters = {"full_attention": longrope(), "sliding_attention": {"rope_type": "default"}}
    model = tiny_models.model()
    model.config = config
    assert (known_positions(model), context_length(model)) == (32, BORDER)


@pytest.mark.parametrize("check", [check_language_model, check_scorer])
def test_check_refuses_positions_that_depend_on_a_longer_row(check):
    build = tiny_models.model if check is check_language_model else tiny_models.classifier
    model = trainable(build("llama", rope_parameters=longrope()))
    check(model)
    model.config = copy.deepcopy(model.config)  # as of a model with code of its own, whose configuration says nothing
    model.config.rope_parameters = {"rope_type": "default"}
    with pytest.raises(UserError, match="beside other rows, its outputs are off by"):
        check(model)


@pytest.mark.parametrize("kind", NOISY)
def test_training_mode_has_no_noise_of_any_kind(kind):
    policy = LanguagePolicy(tiny_models.model(kind, scale=4.0, **NOISY[kind]), tiny_models.tokenizer())
    expected = [alone(policy.model, SHORT, row.tolist()) for row in ACTIONS]
    for network in (policy, frozen_copy(policy)):
        for _ in range(2):
            found = network.train().evaluate(context(SHORT, SHORT), ACTIONS, MASK).logprobs
            torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)


def test_a_copy_keeps_to_itself_what_mode_it_is_in():
    policy = tiny_models.policy()
    reference = frozen_copy(policy)
    assert reference.train().model.train() is reference.model
    assert not any(module.training for module in [*policy.model.modules(), *reference.model.modules()])


@pytest.mark.parametrize("check", [check_language_model, check_scorer])
def test_check_refuses_noise_that_stays_on(check):
    build = tiny_models.model if check is check_language_model else tiny_models.classifier
    model = trainable(build("llama", scale=1.0))
    check(model)
    noise = 2e-5  # a thousandth of the embeddings: far below the tolerance of the comparison with other numbers
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: out + noise * torch.randn_like(out))
    with pytest.raises(UserError, match="two evaluations of the same tokens differ by"):
        check(model)
