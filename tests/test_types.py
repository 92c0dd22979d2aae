from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.types import AdvantageBatch, ObservationContext, Rollout, TokenContext

NAN = float("nan")

cases = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=6).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.lists(st.integers(0, len(sizes) - 1), max_size=8))
)


def make_context(lengths: list[int], width: int) -> TokenContext:
    """Prompts 100·row + position, padded on the left with −1."""
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    ids = 100 * torch.arange(len(lengths))[:, None] + torch.arange(width) - (width - torch.tensor(lengths)[:, None])
    return TokenContext(torch.where(mask, ids, -1), mask)


def make_batch(sizes: list[tuple[int, int]], *, prompt_width: int = 5, width: int = 6) -> AdvantageBatch:
    """Every field different, NaN where no action was taken."""
    lengths = torch.tensor([n for _, n in sizes])
    mask = torch.arange(width) < lengths[:, None]
    base = 100 * torch.arange(len(sizes))[:, None] + torch.arange(width)

    def floats(offset: float):
        return torch.where(mask, base + offset, NAN)

    return AdvantageBatch(
        context=make_context([p for p, _ in sizes], prompt_width),
        actions=torch.where(mask, base, -1),
        action_mask=mask,
        old_logprobs=floats(0.1),
        old_values=floats(0.2),
        advantages=floats(0.3),
        returns=floats(0.4),
        ref_logprobs=floats(0.5),
    )


def make_rollout(sizes: list[tuple[int, int]]) -> Rollout:
    batch = make_batch(sizes)
    return Rollout(
        context=batch.context,
        actions=batch.actions,
        action_mask=batch.action_mask,
        old_logprobs=batch.old_logprobs,
        terminated=batch.action_mask,
        truncated=~batch.action_mask,
        rows=10 + torch.arange(len(sizes)),
    )


def matrices(batch: AdvantageBatch | Rollout) -> dict[str, torch.Tensor]:
    return {
        f.name: getattr(batch, f.name)
        for f in fields(batch)
        if f.name not in ("context", "terminated", "truncated", "rows")
    }


# TokenContext.select


def test_context_select_drops_columns_that_only_pad():
    # rows of 3, 1 and 2 tokens in 4 columns: rows 2 and 1 need two of them
    context = make_context([3, 1, 2], width=4)
    chosen = context.select(torch.tensor([2, 1]))
    assert chosen.input_ids.tolist() == [[200, 201], [-1, 100]]
    assert chosen.attention_mask.tolist() == [[True, True], [False, True]]


def test_context_select_of_no_rows_keeps_one_column():
    chosen = make_context([3, 1], width=4).select(torch.tensor([], dtype=torch.long))
    assert chosen.input_ids.shape == chosen.attention_mask.shape == (0, 1)


def test_context_select_of_empty_prompts_keeps_one_column():
    chosen = make_context([0, 3], width=4).select(torch.tensor([0]))
    assert chosen.attention_mask.tolist() == [[False]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_context_select_keeps_every_token_of_the_chosen_rows(lengths, data):
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    chosen = make_context(lengths, width=5).select(torch.tensor(rows))
    assert len(chosen) == len(rows)
    assert chosen.input_ids.shape[1] == max(1, *(lengths[r] for r in rows))
    for ids, mask, r in zip(chosen.input_ids, chosen.attention_mask, rows, strict=True):
        assert ids[mask].tolist() == [100 * r + k for k in range(lengths[r])]
        assert mask.tolist() == sorted(mask.tolist())


# AdvantageBatch.select, Rollout.select


def test_batch_select_by_hand():
    batch = make_batch([(2, 3), (1, 1), (3, 2)])
    chosen = batch.select(torch.tensor([2, 1]))
    assert chosen.actions.tolist() == [[200, 201], [100, -1]]
    assert chosen.action_mask.tolist() == [[True, True], [True, False]]
    assert chosen.context.input_ids.tolist() == [[200, 201, 202], [-1, -1, 100]]
    torch.testing.assert_close(chosen.returns, torch.tensor([[200.4, 201.4], [100.4, NAN]]), equal_nan=True)


@pytest.mark.parametrize("make", [make_batch, make_rollout])
@given(case=cases)
def test_select_keeps_every_action_of_the_chosen_rows(make, case):
    sizes, rows = case
    batch = make(sizes)
    chosen = batch.select(torch.tensor(rows, dtype=torch.long))
    width = max([1, *(sizes[r][1] for r in rows)])
    assert type(chosen) is type(batch)
    assert len(chosen) == len(chosen.context) == len(rows)
    for name, values in matrices(chosen).items():
        assert values.shape == (len(rows), width)
        for i, r in enumerate(rows):
            n = sizes[r][1]
            assert torch.equal(values[i, :n], getattr(batch, name)[r, :n]), name
    assert chosen.action_mask.sum(-1).tolist() == [sizes[r][1] for r in rows]


@given(case=cases)
def test_select_of_a_selection_is_the_selection_of_both(case):
    sizes, rows = case
    batch = make_batch(sizes)
    backwards = torch.arange(len(rows)).flip(0)
    twice = batch.select(torch.tensor(rows, dtype=torch.long)).select(backwards)
    once = batch.select(torch.tensor(rows[::-1], dtype=torch.long))
    for name, values in matrices(twice).items():
        torch.testing.assert_close(values, matrices(once)[name], equal_nan=True)
    assert torch.equal(twice.context.input_ids, once.context.input_ids)


def test_select_of_rows_without_actions_keeps_one_column():
    chosen = make_batch([(1, 0), (1, 4)]).select(torch.tensor([0]))
    assert chosen.action_mask.tolist() == [[False]]


def test_rollout_select_takes_the_numbers_per_row_along():
    chosen = make_rollout([(1, 1), (2, 2), (3, 3)]).select(torch.tensor([2, 0, 2]))
    assert chosen.rows.tolist() == [12, 10, 12]
    assert torch.equal(chosen.terminated, chosen.action_mask)
    assert torch.equal(chosen.truncated, ~chosen.action_mask)
    assert chosen.lengths().tolist() == [3, 1, 3]


def test_select_leaves_the_batch_alone():
    batch = make_batch([(2, 3), (1, 1)])
    chosen = batch.select(torch.tensor([0, 1]))
    chosen.advantages.zero_()
    chosen.context.input_ids.zero_()
    assert batch.advantages[0].tolist()[:3] == pytest.approx([0.3, 1.3, 2.3])
    assert batch.context.input_ids[0].tolist() == [-1, -1, -1, 0, 1]


def test_a_batch_without_reference_logprobs_stays_without():
    batch = replace(make_batch([(2, 3), (1, 1)]), ref_logprobs=None)
    for changed in (batch.select(torch.tensor([1])), batch.to("meta"), batch.units()):
        assert changed.ref_logprobs is None


def test_units_take_reference_logprobs_along():
    observations = torch.zeros(2, 6, 1)
    batch = replace(make_batch([(1, 3), (1, 1)]), context=ObservationContext(observations, observations))
    assert batch.units().ref_logprobs.flatten().tolist() == pytest.approx([0.5, 1.5, 2.5, 100.5])


@pytest.mark.parametrize("make", [make_batch, make_rollout])
def test_to_moves_every_field(make):
    moved = make([(2, 3), (1, 1)]).to("meta")
    tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)]
    tensors += [moved.context.input_ids, moved.context.attention_mask]
    assert len(tensors) == len(fields(moved)) + 1
    assert {t.device.type for t in tensors} == {"meta"}
