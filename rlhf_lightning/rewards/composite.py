"""Several reward sources as one: learned models, rules and Python functions, weighed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import Judgement, RewardSource, checked_weights, judged
from rlhf_lightning.types import Prompt


class CompositeReward(RewardSource):
    """The weighted sum of other sources, each an objective under the name of its part.

    A part that has objectives itself counts as one, by its own weighted sum; they are measured as PART_OBJECTIVE. What
    a part measures keeps its name, and becomes PART_NAME where several parts measure the same.

    Args:
        parts: the sources by name; the name is what metrics and ``data.init_args.weights`` call the objective.
        weights: of the parts that do not weigh 1; 0 only measures one.
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
        """What each part says, and the weighted sum."""
        found = {
            name: _judged_part(name, part, prompts, responses)
            for name, part in zip(self.objectives, self.parts, strict=True)
        }
        # a learned part answers from the accelerator, a rule from the CPU
        objectives = {name: judgement.scores.cpu() for name, judgement in found.items()}
        scores = sum(weight * objectives[name] for name, weight in self.objectives.items())
        return Judgement(scores, objectives, _measures(found))


def _judged_part(name: str, part: RewardSource, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
    try:
        return judged(part, prompts, responses)
    except UserError as error:
        raise UserError(f"part {name} of the reward: {error}") from error


def _measures(found: dict[str, Judgement]) -> dict[str, Tensor]:
    counts = Counter(name for judgement in found.values() for name in judgement.measures)
    measures: dict[str, Tensor] = {}
    for part, judgement in found.items():
        measures |= {f"{part}_{name}": values for name, values in judgement.objectives.items()}
        for name, values in judgement.measures.items():
            measures[name if counts[name] == 1 else f"{part}_{name}"] = values
    return measures
