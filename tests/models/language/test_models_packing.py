"""Rows laid end to end give what rows with padding give, values and gradients."""

import copy
import json

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.models.language.packing import Packing
from rlhf_lightning.models.language.states import hidden_states, packs, padded_states
from rlhf_lightning.models.language.trunk import trainable
from rlhf_lightning.types import TokenContext

CONTEXT = tiny_models.context([3, 5, 6], [4], [3, 5, 6], [4, 7], [3, 5, 6])
ACTIONS = torch.randint(5, 15, (5, 5), generator=torch.Generator().manual_seed(1))
ACTION_MASK = torch.arange(5) < torch.tensor([5, 2, 1, 4, 3])[:, None]
MASK = torch.cat([CONTEXT.attention_mask, ACTION_MASK], dim=1)
PACKED = [kind for kind in tiny_models.ARCHITECTURES if kind not in ("gemma2", "mistral")]


def built(kind: str, **changes):
    return trainable(tiny_models.model(kind, **changes)).double()


def values_and_gradients(states, model, context, actions, action_mask):
    mask = torch.cat([context.attention_mask, action_mask], dim=1)
    found = states(model, context, actions, action_mask)[mask]
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    model.zero_grad()
    (found * weights).sin().sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_rows_have_the_states_and_gradients_of_padded_ones(kind):
    model = built(kind)
    assert packs(model)
    found, gradients = values_and_gradients(hidden_states, model, CONTEXT, ACTIONS, ACTION_MASK)
    expected, expected_gradients = values_and_gradients(padded_states, model, CONTEXT, ACTIONS, ACTION_MASK)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == expected_gradients.keys()
    exact = kind in ("gpt2", "gpt_neox", "opt")  # the others compute their norms in float32
    for name, gradient in gradients.items():
        distance, scale = (gradient - expected_gradients[name]).norm(), expected_gradients[name].norm()
        assert distance <= (1e-12 if exact else 1e-5) * scale + 1e-12, name


@pytest.mark.parametrize(("kind", "length"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
@pytest.mark.parametrize("longest", [20, 90], ids=["short rows", "long rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_rows_have_the_states_and_gradients_of_padded_ones(kind, length, longest, dtype):
    """More tokens than 512, from where on oneDNN multiplies, and rows on both sides of 64, where attention changes."""
    generator = torch.Generator().manual_seed(3)
    model = built(kind, **{length: 128}).to(dtype)
    context = tiny_models.context(*([3 + row % 5, 4, 5 + row % 3] for row in range(60)))
    actions = torch.randint(5, 15, (60, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (60,), generator=generator)
    lengths[0] = longest
    given = context, actions, torch.arange(longest) < lengths[:, None]
    found, gradients = values_and_gradients(hidden_states, model, *given)
    expected, expected_gradients = values_and_gradients(padded_states, model, *given)
    exact = dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 if exact else 1e-4)
    for name, gradient in gradients.items():
        distance, scale = (gradient - expected_gradients[name]).norm(), expected_gradients[name].norm()
        assert distance <= (1e-5 if exact else 1e-3) * scale + 1e-10, name


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_row_among_others_has_the_states_that_it_has_alone(kind):
    model = built(kind)
    together = hidden_states(model, CONTEXT, ACTIONS, ACTION_MASK)
    for row in range(len(ACTIONS)):
        context = TokenContext(CONTEXT.input_ids[[row]], CONTEXT.attention_mask[[row]])
        alone = hidden_states(model, context, ACTIONS[[row]], ACTION_MASK[[row]])
        torch.testing.assert_close(together[row][MASK[row]], alone[0][MASK[row]], rtol=1e-10, atol=1e-10)


def test_packing_by_hand():
    context = tiny_models.context([8, 9], [7], [8, 9])
    packing = Packing.of(context, torch.tensor([[True, False], [True, True], [True, True]]))
    assert packing.tokens.tolist() == [0, 1, 2, 5, 6, 7, 10, 11]  # the prompt of the third row is that of the first
    assert packing.rows.tolist() == [[0, 1, 2, 0], [3, 4, 5, 0], [0, 1, 6, 7]]
    assert packing.places.tolist() == [[0, 1, 2, 0], [0, 3, 4, 5], [0, 1, 6, 7]]
    assert packing.sources.tolist() == [0, 1, 2, 4, 5, 6, 10, 11]


def test_prompts_that_differ_in_their_padding_alone_are_not_the_same():
    context = TokenContext(torch.tensor([[0, 4], [0, 4]]), torch.tensor([[False, True], [True, True]]))
    packing = Packing.of(context, torch.ones(2, 1, dtype=torch.bool))
    assert packing.tokens.tolist() == [1, 2, 3, 4, 5]


def test_what_stands_in_the_padding_does_not_matter():
    model = built("llama")
    expected = hidden_states(model, CONTEXT, ACTIONS, ACTION_MASK)[MASK]
    filled = TokenContext(torch.where(CONTEXT.attention_mask, CONTEXT.input_ids, 9), CONTEXT.attention_mask)
    found = hidden_states(model, filled, torch.where(ACTION_MASK, ACTIONS, 11), ACTION_MASK)[MASK]
    assert torch.equal(found, expected)


def test_a_model_that_mixes_neighbours_reads_padded_rows(caplog):
    sizes = {"vocab_size": 15, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trainable(AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)))
    caplog.set_level("INFO", logger="rlhf_lightning")
    found = hidden_states(model, CONTEXT, ACTIONS, ACTION_MASK)
    assert not packs(model)
    assert torch.equal(found[MASK], padded_states(model, CONTEXT, ACTIONS, ACTION_MASK)[MASK])
    assert "rows are padded: MambaForCausalLM cannot read them laid end to end" in caplog.messages


def test_rows_longer_than_a_window_of_attention_are_padded():
    model = built("mistral")  # a window of 4
    found = hidden_states(model, CONTEXT, ACTIONS, ACTION_MASK)[MASK]
    assert torch.equal(found, padded_states(model, CONTEXT, ACTIONS, ACTION_MASK)[MASK])
    wide = built("mistral", sliding_window=None)
    assert not torch.allclose(hidden_states(wide, CONTEXT, ACTIONS, ACTION_MASK)[MASK], found)


def test_a_copy_packs_and_an_export_says_nothing_of_it(tmp_path):
    model = built("llama")
    expected = hidden_states(model, CONTEXT, ACTIONS, ACTION_MASK)[MASK]
    assert torch.equal(hidden_states(copy.deepcopy(model), CONTEXT, ACTIONS, ACTION_MASK)[MASK], expected)
    model.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    loaded = trainable(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64))
    assert torch.equal(hidden_states(loaded, CONTEXT, ACTIONS, ACTION_MASK)[MASK], expected)
