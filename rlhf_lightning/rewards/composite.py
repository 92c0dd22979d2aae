"""Several reward sources as one weighted sum: learned models, rules and Python functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import Judgement, RewardSource, checked_weights, judged, weighted_sum
from rlhf_lightning.types import Prompt


class CompositeReward(RewardSource):
    """The weighted sum of other sources, each of which is an objective under the name of its part.

    A part with several objectives counts as one objective, its own weighted sum; the single scores are measured as
    PART_OBJECTIVE. A measure of a part keeps its name, or becomes PART_NAME if another part has one of the same name.

    Args:
        parts: the sources by name; metrics and ``data.init_args.weights`` use the name for the objective.
        weights: weights of parts that differ from 1; with 0 a part is only measured.
    """

    def __init__(self, parts: dict[str, RewardSource], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        if not parts:
            raise UserError("reward.init_args.parts is empty; expected reward sources by name")
        for name in parts:
            if not re.fullmatch(r"[\w-]+", name):
                raise UserError(
                    f"reward.init_args.parts: {name!r} is no name for metrics; expected letters, digits, _ and -"
                )
        self.objectives = {name: 1.0 for name in parts} | checked_weights("reward.init_args.weights", weights, parts)
        self.parts = nn.ModuleList(parts.values())

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """The scores of each part, and the weighted sum."""
        judgements = {
            name: _judged_part(name, part, prompts, responses)
            for name, part in zip(self.objectives, self.parts, strict=True)
        }
        # the scores of a learned part are on the accelerator, those of a rule on the CPU
        objectives = {name: judgement.scores.cpu() for name, judgement in judgements.items()}
        return Judgement(weighted_sum(objectives, self.objectives), objectives, _measures(judgements))


def _judged_part(name: str, part: nn.Module, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
    assert isinstance(part, RewardSource)
    try:
        return judged(part, prompts, responses)
    except UserError as error:
        raise UserError(f"part {name} of the reward: {error}") from error


def _measures(judgements: dict[str, Judgement]) -> dict[str, Tensor]:
    counts = Counter(name for judgement in judgements.values() for name in judgement.measures)
    measures: dict[str, Tensor] = {}
    for part, judgement in judgements.items():
        measures |= {f"{part}_{name}": values for name, values in judgement.objectives.items()}
        for name, values in judgement.measures.items():
            measures[name if counts[name] == 1 else f"{part}_{name}"] = values
    return measures
