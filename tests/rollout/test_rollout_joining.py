"""Several rollouts as one, and some rows of one."""

import torch

from rlhf_lightning.rollout.joining import join_scored, select_scored
from rlhf_lightning.types import Rollout, ScoredRollout, TokenContext


def scored(prompts, responses, *, first, seconds):
    """A rollout of given token ids, padded with -1: prompts on the left, responses on the right."""
    prompt_width, width = max(map(len, prompts)), max(map(len, responses))
    ids = torch.tensor([[-1] * (prompt_width - len(p)) + p for p in prompts])
    actions = torch.tensor([r + [-1] * (width - len(r)) for r in responses])
    mask = actions >= 0
    last = torch.tensor([[t == len(r) - 1 for t in range(width)] for r in responses])
    names = [str(first + i) for i in range(len(prompts))]
    scores = torch.tensor([float(first + i) for i in range(len(prompts))])
    return ScoredRollout(
        rollout=Rollout(
            context=TokenContext(ids, ids >= 0),
            actions=actions,
            action_mask=mask,
            old_logprobs=torch.where(mask, -0.1 * actions, torch.tensor(float("nan"))),
            terminated=last,
            truncated=torch.zeros_like(mask),
            rows=torch.arange(len(prompts)),
        ),
        rewards=torch.where(last, scores[:, None], 0.0),
        scores=scores,
        objectives={"kind": 0.5 * scores, "short": -scores},
        weights={"kind": 2.0, "short": 0.25},
        group_size=1,
        prompts=[f"prompt {name}" for name in names],
        responses=[f"response {name}" for name in names],
        measures={"gold": 10 * scores},
        timings={"rollout_seconds": seconds},
        prompts_shortened=len(prompts),
        prompts_spelled=len(prompts) + 1,
    )


def contents(part):
    """Each row without its padding."""
    rollout, result = part.rollout, []
    for i in range(len(part)):
        mask = rollout.action_mask[i]
        steps = (rollout.actions, rollout.old_logprobs, rollout.terminated, rollout.truncated, part.rewards)
        texts = part.prompts[i], part.responses[i], part.scores[i].item(), part.measures["gold"][i].item()
        texts += tuple(values[i].item() for values in part.objectives.values())
        prompt = rollout.context.input_ids[i][rollout.context.attention_mask[i]].tolist()
        result.append((prompt, *(values[i][mask].tolist() for values in steps), *texts, rollout.rows[i].item()))
    return result


SHORT = ([[1], [2, 3]], [[4, 5], [6]])
LONG = ([[7, 8, 9], [1]], [[2], [3, 4, 5]])


def test_joined_rollouts_keep_every_row():
    parts = scored(*SHORT, first=0, seconds=1.0), scored(*LONG, first=2, seconds=2.5)
    whole = join_scored(parts)
    assert contents(whole) == contents(parts[0]) + contents(parts[1])
    assert whole.rollout.context.input_ids.shape == (4, 3)
    assert whole.rollout.actions.shape == whole.rewards.shape == (4, 3)
    assert whole.timings == {"rollout_seconds": 3.5}
    assert whole.weights == {"kind": 2.0, "short": 0.25}
    assert (whole.prompts_shortened, whole.prompts_spelled) == (4, 6)


def test_selected_rows_keep_what_belongs_to_them():
    whole = join_scored([scored(*SHORT, first=0, seconds=1.0), scored(*LONG, first=2, seconds=2.5)])
    chosen = select_scored(whole, torch.tensor([2, 0]))
    everything = contents(whole)
    assert contents(chosen) == [everything[2], everything[0]]
    assert chosen.rollout.actions.shape == chosen.rewards.shape == (2, 2)
    assert chosen.timings == whole.timings
    assert chosen.weights == whole.weights
