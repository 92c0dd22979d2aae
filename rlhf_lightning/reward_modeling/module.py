"""Reward modeling: scores of responses, fitted to human feedback.

Bradley and Terry 1952; for language models Ziegler et al. 2019 and Stiennon et al. 2020; rankings as in Ouyang et al.
2022. After training, scores are centered on held-out responses, so that the policy that wrote them has a mean score of
0, and a temperature is fitted, so that σ of a score difference over it is a calibrated probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.data.feedback import FeedbackDataModule, names_of_annotators, names_of_objectives
from rlhf_lightning.distributed import failing_together, gather_rows, own_rows, run_seed
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.reward.architectures import Architecture, JointEncoder
from rlhf_lightning.models.reward.combination import Combination, MeanScore
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.ops.preference import centering_penalty
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.reward_modeling.agreement import annotator_agreement
from rlhf_lightning.reward_modeling.calibration import rightness
from rlhf_lightning.reward_modeling.evaluation import evaluation_metrics
from rlhf_lightning.reward_modeling.losses import BradleyTerry, RewardLoss
from rlhf_lightning.reward_modeling.report import Scored, evaluated, known_ceiling
from rlhf_lightning.reward_modeling.scores import flat_texts, judged_scores
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import EQUAL, Offline, Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import OVERALL, Feedback, Rating


class RewardModeling(Offline[Feedback]):
    """Fits a reward model to pairs, rankings or ratings.

    Comparisons of which two responses are the same tokens once they are cut are left out and counted.

    Args:
        task: the task of the responses.
        backbone: builds the networks; with a checkpoint, they start from the trunk of that model.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones.
        architecture: ``JointEncoder`` over prompt and response, or ``SeparateEncoders``.
        loss: ``BradleyTerry`` of pairs, ``PlackettLuce`` or ``AllPairs`` of rankings, ``Regression`` on ratings.
        objectives: weights of the objectives by name, each of which has a head; None for weight 1 on each objective of
            the data.
        annotator_heads: a head for each annotator; the score is the mean over them.
        members: number of networks of an ensemble, each with its own initialization and order of the data.
        combine: how the members' scores become one: ``MeanScore``, ``WorstCase`` or ``UncertaintyWeighted``.
        centering: weight of the squared sum of a prompt's scores in the loss, 0.001 to 0.1; 0 for none.
        head_lr: learning rate of the heads, which are initialized to 0; None for that of the trunk.
        log_every: steps between rows of metrics.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})
    data_class = FeedbackDataModule
    kind = "reward"

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(lr=1e-4),
        architecture: Architecture = JointEncoder(),
        loss: RewardLoss = BradleyTerry(),
        objectives: dict[str, float] | None = None,
        annotator_heads: bool = False,
        members: int = 1,
        combine: Combination = MeanScore(),
        centering: float = 0.0,
        head_lr: float | None = None,
        log_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, log_every)
        self.architecture = architecture
        self.loss = loss
        self.objectives = objectives
        self.annotator_heads = annotator_heads
        self.members = members
        self.combine = combine
        self.centering = centering
        self.head_lr = head_lr
        self.evaluation: dict[str, Any] = {}
        self._check_arguments()

    def _check_arguments(self) -> None:
        weights = list((self.objectives or {}).values())
        limits = {
            "members": (self.members >= 1, "at least 1", self.members),
            "centering": (0 <= self.centering < math.inf, "0 or more", self.centering),
            "head_lr": (self.head_lr is None or 0 < self.head_lr < math.inf, "above 0", self.head_lr),
            "objectives": (all(map(math.isfinite, weights)) and any(weights or [1]), "finite weights", self.objectives),
        }
        check_limits("model.init_args", limits)

    # -- networks ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that loss and objectives fit the data.

        Raises:
            UserError: the loss cannot use this kind of feedback, or the objectives of model and data differ.
        """
        super().setup(stage)
        kind = type(self.data.train[0])
        if kind not in self.loss.kinds:
            known = " or ".join(known_kind.__name__ for known_kind in self.loss.kinds)
            raise UserError(
                f"model.init_args.loss {type(self.loss).__name__} is for feedback of kind {known}, and "
                f"{type(self.data).__name__} gives {kind.__name__}"
            )
        if kind is Rating and self.centering:
            raise UserError(
                "model.init_args.centering is for comparisons: ratings have a level of their own; expected 0"
            )
        self.measured = () if kind is Rating else ("accuracy", "margin")
        self._ceiling: float | None = None  # depends on the data
        self._comparable: dict[int, list[Feedback]] = {}  # by number of the held-out batch
        self._train_sample: list[Feedback] | None = None
        self.weights = self._objective_weights()
        self._check_heldout_objectives()
        self.annotators = names_of_annotators(self.data.train) if self.annotator_heads else []
        if self.annotator_heads and not self.annotators:
            raise UserError("model.init_args.annotator_heads is true, and the feedback names no annotator")

    def _objective_weights(self) -> dict[str, float]:
        names = [name for name in names_of_objectives(self.data.train) if name != OVERALL]
        if self.objectives is None:
            return dict.fromkeys(names, 1.0)
        if sorted(self.objectives) != names:
            raise UserError(
                f"model.init_args.objectives names {', '.join(sorted(self.objectives)) or 'none'}, and the feedback "
                f"{', '.join(names) or 'none'}; expected the same (data.init_args.objectives chooses among them)"
            )
        return dict(self.objectives)

    def _check_heldout_objectives(self) -> None:
        """Refuse held-out feedback about an objective without training data, whose head would give 0 for everything."""
        unknown = sorted(set(names_of_objectives(self.data.heldout)) - {*self.weights, OVERALL})
        if self.weights and unknown:
            raise UserError(
                f"held-out feedback names the objective {unknown[0]}, and training feedback only "
                f"{', '.join(self.weights)}; expected the same (data.init_args.objectives chooses among them)"
            )

    def configure_model(self) -> None:
        """Build the model, once."""
        if hasattr(self, "reward_model"):
            return
        columns = max(len(self.weights), 1) * max(len(self.annotators), 1)
        seeds = [None] if self.members == 1 else [run_seed() + (n + 1) * 1_000_003 for n in range(self.members)]
        with self.building():
            members = [
                self.architecture.build(self.backbone, self.task.interface, outputs=columns, seed=seed)
                for seed in seeds
            ]
            self.reward_model = RewardModel(
                members, objectives=self.weights, annotators=self.annotators, combine=self.combine
            )

    def networks(self) -> dict[str, nn.Module]:
        """The trunk and the heads of each member."""
        names = [""] if self.members == 1 else [f"_{number}" for number in range(self.members)]
        trunks = {f"reward_model{n}": m.trunk for n, m in zip(names, self.reward_model.members, strict=True)}
        return trunks | {f"head{n}": m.heads for n, m in zip(names, self.reward_model.members, strict=True)}

    def learning_rates(self) -> dict[str, float]:
        """The learning rate of the heads, if it differs from that of the trunk."""
        return {} if self.head_lr is None else {n: self.head_lr for n in self.networks() if n.startswith("head")}

    def export(self, path: Path) -> None:
        """Write the centered model."""
        self.reward_model.save(path)

    # -- the step ----------------------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Feedback]) -> Any:
        """Token ids of the responses of all examples, in order."""
        return self.reward_model.members[0].encode(*flat_texts(examples))

    def owners(self, examples: Sequence[Feedback]) -> Sequence[int]:
        """The example of each response, in the order of `encode`."""
        return [number for number, example in enumerate(examples) for _ in example.responses]

    def gradients(self) -> dict[str, float]:
        """Accumulate the gradients of each member on its own batch; returns means over members."""
        means = [
            self.accumulate(
                self.data.train_batch(self.global_step, member),
                partial(self.loss_sum, member=member),
                counted=member == 0,
            )
            for member in range(self.members)
        ]
        return {name: sum(row[name] for row in means) / len(means) for name in means[0]}

    def loss_sum(self, part: Part[Feedback], member: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one member, summed over examples, with the sums of ``measured``."""
        examples = part.examples
        columns = self.reward_model.members[member](part.encoded)
        columns = columns if columns.dtype == torch.float64 else columns.float()
        scores, mask = judged_scores(columns, examples, self.reward_model.output_weights)
        loss = self.loss.of(scores, mask, examples)
        if self.centering:
            loss = loss + self.centering * centering_penalty(scores, mask)
        if not self.measured:
            return loss.sum(), {}
        difference = (scores[:, 0] - scores[:, 1]).detach()  # the first two responses of a ranking
        return loss.sum(), {"accuracy": rightness(difference).sum(), "margin": difference.sum()}

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """Loss, accuracy and mean margin; for rankings, of the first two responses."""
        return {f"reward_model/{name}": value for name, value in means.items()}

    def progress(self) -> dict[str, str]:
        """Loss and accuracy."""
        return {"reward_model/loss": "loss", "reward_model/accuracy": "accuracy", "eval/accuracy": "eval accuracy"}

    # -- held-out feedback -------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Prepare to collect scores."""
        super().on_validation_epoch_start()
        self._columns: list[Float[Tensor, "M N C"]] = []
        self._examined: list[Feedback] = []

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Scores of a batch of held-out examples, gathered from all ranks."""
        number = int(batch)
        if number not in self._comparable:
            self._comparable[number] = self.comparable(self.data.heldout_batch(number))
        examples = self._comparable[number]
        self._columns.append(self._scored(examples))
        self._examined += examples

    def on_validation_epoch_end(self) -> None:
        """Update centers and temperature, and report the evaluation."""
        if self.trainer.sanity_checking:
            return
        if not self._examined:
            raise UserError(f"no held-out {self.data.unit} are left: {EQUAL}")
        if self._train_sample is None:
            stride = -(-len(self.data.train) // min(len(self._examined), TRAIN_LIMIT))
            self._train_sample = self.comparable(self.data.train[::stride])  # evenly: the data may be sorted
        if not self._train_sample:
            raise UserError(f"no {self.data.unit} are left to train on: {EQUAL}")
        columns = torch.cat(self._columns, dim=1)
        if self.fitting:
            self.reward_model.centers.copy_(columns.double().mean(1))
        if self._ceiling is None:
            self._ceiling = known_ceiling(self.task, self.data.train, self._examined)
        heldout, train = Scored(self._examined, columns), Scored(self._train_sample, self._scored(self._train_sample))
        self.evaluation = evaluated(self.task, self.reward_model, self.loss, heldout, train, ceiling=self._ceiling)
        self.evaluation["fitted_to"] = len(self.data.train)
        if self.fitting and "temperature" in self.evaluation:
            self.reward_model.temperature.fill_(self.evaluation["temperature"])
        self.publish_evaluation(evaluation_metrics(self.evaluation))

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _scored(self, examples: Sequence[Feedback]) -> Float[Tensor, "M N C"]:
        """All outputs for all responses; each rank computes some."""
        prompts, responses = flat_texts(examples)
        mine = own_rows(len(responses)).tolist()
        size = self.optimization.microbatch_size or EVALUATED_AT_ONCE
        with torch.no_grad(), failing_together():
            own = self.reward_model.raw_scores(
                [prompts[i] for i in mine], [responses[i] for i in mine], batch_size=size
            )
        return gather_rows(own.transpose(0, 1).contiguous(), len(responses)).transpose(0, 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the last evaluation, since a run may be stopped between its last step and `on_fit_end`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["evaluation"] = json.dumps(self.evaluation)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the last evaluation."""
        super().on_load_checkpoint(checkpoint)
        self.evaluation = json.loads(checkpoint.get("evaluation", "{}"))

    def on_fit_end(self) -> None:
        """Write ``evaluation.json``."""
        if self.trainer.is_global_zero and self.evaluation and not self.fast_dev_run:
            path = Path(self.trainer.default_root_dir) / "evaluation.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            agreement = annotator_agreement([*self.data.train, *self.data.heldout])
            write_atomically(path, json.dumps(self.evaluation | {"annotator_agreement": agreement}, indent=1))


TRAIN_LIMIT = 512
"""Largest number of training examples that are scored for comparison with held-out ones."""
EVALUATED_AT_ONCE = 256
"""Responses that are scored at once if there is no microbatch size."""
