"""`RewardModel`: what was trained to score responses, as one object: one network, or several that judge together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.checkpoints import STAGES
from rlhf_lightning.models.reward import combination
from rlhf_lightning.models.reward.combination import Combination, MeanScore
from rlhf_lightning.models.reward.networks import KIND, RewardNetwork, load_classifier
from rlhf_lightning.models.reward.separate_network import SeparateNetwork, load_separate
from rlhf_lightning.types import Prompt

FILE = "reward_model.json"


class RewardModel(nn.Module):
    """Scores responses as text, in batches of like length.

    Each member's scores are centered: 0 is what the policy that wrote the held-out responses gets on average. The worst
    case, and a mean less the disagreement, lie below.

    Args:
        members: networks with the same columns: one for each annotator in each objective, objectives first.
        objectives: weights of the objectives by name; empty where there is one score alone.
        annotators: who has a column of her own; empty where nobody has.
        combine: how members become one score.
    """

    def __init__(
        self,
        members: Sequence[RewardNetwork],
        *,
        objectives: Mapping[str, float] | None = None,
        annotators: Sequence[str] = (),
        combine: Combination = MeanScore(),
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.objectives = dict(objectives or {})
        self.annotators = tuple(annotators)
        self.combine = combine
        self.centers: Tensor
        self.temperature: Tensor
        columns = max(len(self.objectives), 1) * max(len(self.annotators), 1)
        if any(member.columns != columns for member in members):
            raise UserError(
                f"the reward model has {members[0].columns} scores of a response; expected {columns}: one for each of "
                f"{len(self.objectives) or 1} objectives and {len(self.annotators) or 1} annotators"
            )
        self.register_buffer("centers", torch.zeros(len(members), columns))
        self.register_buffer("temperature", torch.ones(()))

    # -- scoring -----------------------------------------------------------------------------------------------

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        annotator: str | None = None,
        batch_size: int = 256,
    ) -> Float[Tensor, " B"]:
        """One score per response: objectives weighed, members combined, annotators averaged.

        Args:
            annotator: whose score is asked for; None for the mean over all.
        """
        scores = self.member_scores(prompts, responses, annotator=annotator, batch_size=batch_size)
        return self.weighed(self.combined(scores))

    def score_objectives(
        self, prompts: Sequence[Prompt], responses: Sequence[str], *, batch_size: int = 256
    ) -> dict[str, Float[Tensor, " B"]]:
        """The score of each objective by name."""
        scores = self.combined(self.member_scores(prompts, responses, batch_size=batch_size))
        return dict(zip(self.objectives, scores.unbind(-1), strict=True)) if self.objectives else {}

    def preference(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, batch_size: int = 256
    ) -> Float[Tensor, " B"]:
        """Probability that the first response is preferred: σ((r₁ − r₂) / T), T from temperature scaling."""
        ours, other = (self.score(prompts, texts, batch_size=batch_size) for texts in (first, second))
        return torch.sigmoid((ours - other) / self.temperature.to(ours.dtype))

    @torch.no_grad()
    def member_scores(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        annotator: str | None = None,
        batch_size: int = 256,
    ) -> Float[Tensor, "M B O"]:
        """Centered scores of each member in each objective (one where there are none), in float32 or better."""
        columns = self.columns(prompts, responses, batch_size=batch_size) - self.centers[:, None]
        by_annotator = columns.unflatten(-1, (max(len(self.objectives), 1), max(len(self.annotators), 1)))
        if annotator is None:
            return by_annotator.mean(-1)
        if annotator not in self.annotators:
            known = ", ".join(self.annotators) or "none by name"
            raise UserError(f"the reward model knows no annotator {annotator!r}; it knows {known}")
        return by_annotator[..., self.annotators.index(annotator)]

    def columns(
        self, prompts: Sequence[Prompt], responses: Sequence[str], *, batch_size: int
    ) -> Float[Tensor, "M B C"]:
        """Every column of every member as it is, not centered; in batches of like length."""
        order = sorted(range(len(responses)), key=lambda i: len(responses[i]))
        scores = self.centers.new_zeros(len(self.members), len(responses), self.centers.shape[1])
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for number, member in enumerate(self.members):
                encoded = member.encode([prompts[i] for i in rows], [responses[i] for i in rows])
                scores[number, rows] = member(encoded.to(self.centers.device)).to(scores.dtype)
        return scores

    def combined(self, scores: Float[Tensor, "M B O"]) -> Float[Tensor, "B O"]:
        """The members as one, each objective by itself; where its weight is negative, a high score is the worse one."""
        signs = scores.new_tensor([math.copysign(1.0, weight) for weight in self.objectives.values()] or [1.0])
        return signs * self.combine.of(signs * scores)

    def weighed(self, scores: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """The weighted sum of the objectives."""
        weights = list(self.objectives.values()) or [1.0]
        return scores @ torch.tensor(weights, dtype=scores.dtype, device=scores.device)

    def column_weights(self, objective: str | None, annotator: str | None) -> Float[Tensor, " C"]:
        """What each column counts in the judgement of one annotator (None: of all) in one objective (None: in all)."""
        weights = list(self.objectives.values()) or [1.0]
        if objective is not None and self.objectives:
            weights = [float(name == objective) for name in self.objectives]
        people = [1 / max(len(self.annotators), 1)] * max(len(self.annotators), 1)
        if annotator in self.annotators:
            people = [float(name == annotator) for name in self.annotators]
        return torch.outer(torch.tensor(weights), torch.tensor(people)).flatten().to(self.centers)

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything into a folder: a single network at its top, several as reward models of their own in it."""
        path.mkdir(parents=True, exist_ok=True)
        folders = ["."]
        if len(self.members) > 1:
            folders = [f"member_{number}" for number in range(len(self.members))]
            for number, folder in enumerate(folders):
                self._alone(number).save(path / folder)
        else:
            member, center = self.members[0], self.centers[0].tolist()
            if len(center) == 1 and hasattr(member, "model"):
                member.model.config.score_center = center[0]  # for a critic that starts from it
            member.save(path)
        settings = {
            "network": "separate" if isinstance(self.members[0], SeparateNetwork) else "classifier",
            "members": folders,
            "objectives": self.objectives,
            "annotators": self.annotators,
            "combine": {"class": type(self.combine).__name__, **asdict(self.combine)},
            "centers": self.centers.tolist(),
            "temperature": self.temperature.item(),
        }
        (path / FILE).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def _alone(self, number: int) -> RewardModel:
        """One of the members as a reward model."""
        model = RewardModel([self.members[number]], objectives=self.objectives, annotators=self.annotators)
        model.centers.copy_(self.centers[number : number + 1])
        model.temperature.copy_(self.temperature)
        return model

    @classmethod
    def from_pretrained(cls, path: str | Path, *, combine: Combination | None = None) -> RewardModel:
        """Read what `save` wrote, or any sequence-classification model with one label, from a folder or the hub.

        Args:
            combine: how members become one score; None as they were trained to.

        Raises:
            UserError: something is missing, unreadable or of another kind.
        """
        path = str(path)
        if "/" not in path and not Path(path).exists():  # names on the hub have an owner
            raise UserError(f"{KIND} {path} does not exist; {STAGES[KIND]}")
        settings = _read_settings(path)
        load: Callable[[str], RewardNetwork] = load_separate if settings["network"] == "separate" else load_classifier
        for folder in settings["members"]:
            if folder != "." and not (Path(path) / folder).is_dir():
                raise UserError(
                    f"{KIND} {path} has no folder {folder}; expected all of its {len(settings['members'])} members"
                )
        members = [load(path if folder == "." else str(Path(path) / folder)) for folder in settings["members"]]
        model = cls(
            members,
            objectives=settings["objectives"],
            annotators=settings["annotators"],
            combine=combine or _combination(settings["combine"], path),
        )
        model.centers.copy_(torch.tensor(settings["centers"] or [[_center(member)] for member in members]))
        model.temperature.fill_(settings["temperature"])
        return model


_PLAIN = {
    "network": "classifier",
    "members": ["."],
    "objectives": {},
    "annotators": [],
    "combine": {"class": "MeanScore"},
    "centers": None,
    "temperature": 1.0,
}
"""What holds of a reward model that was not trained here."""


def _center(member: RewardNetwork) -> float:
    """Of a network that lies by itself, as a critic does that started from a reward model."""
    return float(getattr(member.model.config, "score_center", 0.0))


def _read_settings(path: str) -> dict[str, Any]:
    file = Path(path) / FILE
    if not file.is_file():
        return _PLAIN
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        missing = sorted(set(_PLAIN) - set(settings))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}; expected the JSON that the reward stage writes") from error
    if missing:
        raise UserError(f"{file} has no {', '.join(missing)}; expected the JSON that the reward stage writes")
    return settings


def _combination(settings: Mapping[str, Any], path: str) -> Combination:
    found = getattr(combination, str(settings.get("class")), None)
    if not (isinstance(found, type) and issubclass(found, Combination)):
        raise UserError(
            f"{path}/{FILE}: combine.class is {settings.get('class')!r}; expected MeanScore, WorstCase or "
            "UncertaintyWeighted"
        )
    try:
        return found(**{name: value for name, value in settings.items() if name != "class"})
    except TypeError as error:
        raise UserError(f"{path}/{FILE}: combine {dict(settings)} does not fit: {error}") from error
