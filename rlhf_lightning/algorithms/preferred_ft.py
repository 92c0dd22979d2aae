"""Preferred-FT: fine-tuning on the chosen responses, as if the rejected ones did not exist.

The baseline of Rafailov et al. 2023, "Direct Preference Optimization", § 6. At its best it imitates whoever wrote the
chosen responses: of two samples of the starting policy, the better one.

The loss is the negative log-probability of a whole response, averaged over pairs: maximum likelihood of responses.
(Supervised fine-tuning here averages over tokens, which weighs the same tokens by the mean length of their batch.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.models.language.text import EncodedResponses
from rlhf_lightning.training.offline import Part
from rlhf_lightning.types import PreferencePair


class PreferredFT(FeedbackAlgorithm[PreferencePair]):
    """Imitates the chosen responses.

    Args:
        task: what the pairs are about, and where held-out prompts come from.
        backbone: builds the policy; the model that it starts from is also the reference of ``eval/kl_ref_sequence``.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones from scratch.
        options: held-out evaluation and further limits, see `FeedbackAlgorithm`.
    """

    group = "preferred_ft"

    def encode(self, examples: Sequence[PreferencePair]) -> EncodedResponses:
        """The chosen responses alone."""
        return self.encode_texts([pair.prompt for pair in examples], [pair.chosen for pair in examples])

    def owners(self, examples: Sequence[PreferencePair]) -> Sequence[int]:
        """One response of each pair: nothing is compared."""
        return range(len(examples))

    def loss_sum(self, part: Part[PreferencePair]) -> tuple[Tensor, dict[str, Tensor]]:
        """−log π(y_w), summed over pairs."""
        return -self.logprobs(self.policy, part.encoded).sum(), {}

    variants = (Variant("preferred-FT", OTHER),)
