"""The reward of the enumerable task: a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.types import Prompt


class GoldTable(RewardSource):
    """A score for each response, independent of the prompt.

    Args:
        table: scores by response; white space around a response is ignored.
    """

    def __init__(self, table: Mapping[str, float]) -> None:
        super().__init__()
        self.table = dict(table)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """The scores of the responses.

        Raises:
            UserError: a response is not in the table.
        """
        for response in responses:
            if response.strip() not in self.table:
                raise UserError(
                    f"the bandit task does not know the response {response!r}; expected at most three letters a or b "
                    "with spaces between them: models that can say more need data.init_args.max_new_tokens 3"
                )
        return torch.tensor([self.table[response.strip()] for response in responses])
