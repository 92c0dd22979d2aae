"""`RewardModel`: scores responses with one trained network, or with an ensemble of several."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.errors import UserError, raise_all
from rlhf_lightning.models.language.checkpoints import STAGES
from rlhf_lightning.models.reward import combination
from rlhf_lightning.models.reward.combination import Combination, MeanScore
from rlhf_lightning.models.reward.networks import KIND, ClassifierNetwork, RewardNetwork, load_classifier
from rlhf_lightning.models.reward.separate_network import SeparateNetwork, load_separate
from rlhf_lightning.types import Prompt

FILE = "reward_model.json"


class RewardModel(nn.Module):
    """Scores responses as text, in batches of similar length.

    The scores of each member are centered: the policy that wrote the held-out responses has a mean score of 0. With
    `WorstCase` and `UncertaintyWeighted` the mean combined score is below 0.

    Args:
        members: networks with the same outputs: one for each annotator in each objective, ordered by objective.
        objectives: weights of the objectives by name; empty if there is a single score.
        annotators: names of the annotators who have outputs of their own; empty if the outputs are those of all.
        combine: how the members' scores become one.
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
        self.members = cast(Sequence[RewardNetwork], nn.ModuleList(members))
        self.objectives = dict(objectives or {})
        self.annotators = tuple(annotators)
        self.combine = combine
        self.centers: Tensor
        self.temperature: Tensor
        self.shape = max(len(self.objectives), 1), max(len(self.annotators), 1)
        outputs = math.prod(self.shape)
        if any(member.outputs != outputs for member in members):
            raise UserError(
                f"the reward model has {members[0].outputs} scores of a response; expected {outputs}: one for each of "
                f"{self.shape[0]} objectives and {self.shape[1]} annotators"
            )
        self.register_buffer("centers", torch.zeros(len(members), outputs))
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
        """One score per response: the mean over annotators, combined over members, summed over weighted objectives.

        Args:
            annotator: whose score to return; None for the mean over all annotators.
        """
        scores = self.member_scores(prompts, responses, annotator=annotator, batch_size=batch_size)
        return self.weighted(self.combined(scores))

    def preference(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, batch_size: int = 256
    ) -> Float[Tensor, " B"]:
        """Probability that the first response is preferred: σ((r₁ − r₂) / T), T from temperature scaling."""
        r1, r2 = (self.score(prompts, responses, batch_size=batch_size) for responses in (first, second))
        return torch.sigmoid((r1 - r2) / self.temperature.to(r1.dtype))

    @torch.no_grad()
    def member_scores(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        annotator: str | None = None,
        batch_size: int = 256,
    ) -> Float[Tensor, "M B O"]:
        """Centered scores of each member in each objective (O = 1 without objectives), in float32 or better."""
        centered = self.raw_scores(prompts, responses, batch_size=batch_size) - self.centers[:, None]
        by_annotator = centered.unflatten(-1, self.shape)
        if annotator is None:
            return by_annotator.mean(-1)
        if annotator not in self.annotators:
            known = ", ".join(self.annotators) or "none by name"
            raise UserError(f"the reward model knows no annotator {annotator!r}; it knows {known}")
        return by_annotator[..., self.annotators.index(annotator)]

    def raw_scores(
        self, prompts: Sequence[Prompt], responses: Sequence[str], *, batch_size: int
    ) -> Float[Tensor, "M B C"]:
        """Every output of every member, not centered; computed in batches of similar length."""
        order = sorted(range(len(responses)), key=lambda i: len(responses[i]))
        scores = self.centers.new_zeros(len(self.members), len(responses), self.centers.shape[1])
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for number, member in enumerate(self.members):
                encoded = member.encode([prompts[i] for i in rows], [responses[i] for i in rows])
                scores[number, rows] = member(encoded.to(self.centers.device)).to(scores.dtype)
        return scores

    def combined(self, scores: Float[Tensor, "M B O"]) -> Float[Tensor, "B O"]:
        """Combine the members in each objective; if its weight is negative, the worst case is the highest score."""
        signs = scores.new_tensor([math.copysign(1.0, weight) for weight in self.objectives.values()] or [1.0])
        return signs * self.combine(signs * scores)

    def weighted(self, scores: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """The weighted sum of the objectives."""
        weights = list(self.objectives.values()) or [1.0]
        return scores @ torch.tensor(weights, dtype=scores.dtype, device=scores.device)

    def output_weights(self, objective: str | None, annotator: str | None) -> Float[Tensor, " C"]:
        """Weight of each output in the score by one annotator (None: the mean of all) in one objective (None: all)."""
        weights = list(self.objectives.values()) or [1.0]
        if objective is not None and self.objectives:
            weights = [float(name == objective) for name in self.objectives]
        shares = [1 / self.shape[1]] * self.shape[1]
        if annotator in self.annotators:
            shares = [float(name == annotator) for name in self.annotators]
        return torch.outer(torch.tensor(weights), torch.tensor(shares)).flatten().to(self.centers)

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything into a folder: a single network directly, members of an ensemble in folders of their own."""
        path.mkdir(parents=True, exist_ok=True)
        folders = ["."]
        if len(self.members) > 1:
            folders = [f"member_{number}" for number in range(len(self.members))]
            for number, folder in enumerate(folders):
                self._single(number).save(path / folder)
        else:
            member, center = self.members[0], self.centers[0].tolist()
            if len(center) == 1 and isinstance(member, ClassifierNetwork):
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
            "as_rendered": getattr(self.members[0], "as_rendered", False),
        }
        (path / FILE).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def _single(self, number: int) -> RewardModel:
        """One member as a reward model of its own."""
        model = RewardModel([self.members[number]], objectives=self.objectives, annotators=self.annotators)
        model.centers.copy_(self.centers[number : number + 1])
        model.temperature.copy_(self.temperature)
        return model

    @classmethod
    def from_pretrained(cls, path: str | Path, *, combine: Combination | None = None) -> RewardModel:
        """Load what `save` wrote, or any sequence-classification model with one label, from a folder or the hub.

        Args:
            combine: how the members' scores become one; None as they were saved.

        Raises:
            UserError: something is missing, unreadable or of another kind.
        """
        path = str(path)
        if "/" not in path and not Path(path).exists():  # names on the hub have an owner
            raise UserError(f"{KIND} {path} does not exist; {STAGES[KIND]}")
        settings = _read_settings(path)
        as_rendered = settings["as_rendered"]  # None if an earlier version wrote them, which read every head at EOS
        load: Callable[[str], RewardNetwork] = partial(load_classifier, given_head=as_rendered is not None)
        if settings["network"] == "separate":
            load = load_separate
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
        for member in members:
            if isinstance(member, ClassifierNetwork):
                member.as_rendered = bool(as_rendered)
        centers = settings["centers"] or [[_center(member)] for member in members]
        if [len(row) for row in centers] != [model.centers.shape[1]] * len(members):
            expected = " × ".join(map(str, model.centers.shape))
            raise UserError(f"{path}/{FILE}: centers are {centers!r:.80}; expected {expected} numbers")
        model.centers.copy_(torch.tensor(centers))
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
    "as_rendered": True,
}
"""Settings of a reward model that another program has saved."""


def _center(member: RewardNetwork) -> float:
    """The center in a network's own configuration, as a critic has it that started from a reward model."""
    return float(getattr(member.model.config, "score_center", 0.0)) if isinstance(member, ClassifierNetwork) else 0.0


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(number, int | float) and math.isfinite(number) for number in value
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (lambda value: value in ("classifier", "separate"), "classifier or separate"),
    "members": (
        lambda value: (
            _is_texts(value) and len(value) > 0 and all(Path(name).name == name or name == "." for name in value)
        ),
        "a list of folders beside the file",
    ),
    "objectives": (
        lambda value: isinstance(value, dict) and _is_numbers(list(value.values())),
        "a weight for each objective",
    ),
    "annotators": (_is_texts, "a list of names"),
    "combine": (lambda value: isinstance(value, dict), "a class with its arguments"),
    "centers": (
        lambda value: isinstance(value, list) and all(_is_numbers(row) for row in value),
        "for each member a list of numbers",
    ),
    "temperature": (lambda value: _is_numbers([value]) and value > 0, "a number above 0"),
}
"""What `save` writes: by key, whether a value can be read, and what is expected in words."""


def _read_settings(path: str) -> dict[str, Any]:
    file = Path(path) / FILE
    if not file.is_file():
        return _PLAIN
    wrote = "expected the JSON that the reward stage writes"
    try:
        settings = {"as_rendered": None, **json.loads(file.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}; {wrote}") from error
    if missing := sorted(set(_PLAIN) - set(settings)):
        raise UserError(f"{file} has no {', '.join(missing)}; {wrote}")
    raise_all(
        f"{file}: {key} is {settings[key]!r:.80}; expected {expected}"
        for key, (fits, expected) in _EXPECTED.items()
        if not fits(settings[key])
    )
    return settings


def _combination(settings: Mapping[str, Any], path: str) -> Combination:
    cls = getattr(combination, str(settings.get("class")), None)
    if not (isinstance(cls, type) and issubclass(cls, Combination)):
        raise UserError(
            f"{path}/{FILE}: combine.class is {settings.get('class')!r}; expected MeanScore, WorstCase or "
            "UncertaintyWeighted"
        )
    try:
        return cls(**{name: value for name, value in settings.items() if name != "class"})
    except TypeError as error:
        raise UserError(f"{path}/{FILE}: combine {dict(settings)} does not fit: {error}") from error
