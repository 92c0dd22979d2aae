"""A bandit, a small text task and a quiet trainer, for tests that train."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.proofs.same_run import run_seed_is
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Demonstration, PreferencePair, ScoredRollout, TrainBatch

NOUNS = ("ant", "bee", "cat", "dog", "eel")
LETTERS = ("a", "b", "c", "d")
TIMED = ("timing/", "rollout/tokens_per_second")


def word_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """One token per word; the first two are the end-of-sequence token and the unknown one."""
    ids = {word: i for i, word in enumerate(("</s>", "<unk>", *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


class PaysFor(RewardSource):
    """1 for one response, 0 for every other."""

    def __init__(self, response: str) -> None:
        super().__init__()
        self.response = response

    def score(self, prompts, responses):
        return torch.tensor([float(response == self.response) for response in responses])


class CountsB(RewardSource):
    """Share of the words that are ``b``."""

    def score(self, prompts, responses):
        words = [response.split() for response in responses]
        return torch.tensor([row.count("b") / max(len(row), 1) for row in words])


class OneToken(Task):
    """One prompt, whose answer is one of four tokens: ``</s>``, ``<unk>``, ``a`` and ``b``."""

    provides: ClassVar[frozenset[str]] = frozenset({"prompts"})

    def prompts(self, split):
        return ["a"] * (64 if split == "train" else 32)

    def tokenizer(self):
        return word_tokenizer("a", "b")


class Letters(Task):
    """Prompts of one to three nouns, answers of one to four letters; everything an algorithm can ask for.

    Args:
        prompts: number of training prompts.
        heldout: number of held-out prompts.
        demonstrations: number of training demonstrations.
        pairs: number of training pairs.
        gold: the known true reward; None for none.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"prompts", "demonstrations", "preferences", "groups"})

    def __init__(
        self, prompts: int = 12, heldout: int = 7, demonstrations: int = 13, pairs: int = 13, gold: bool = True
    ) -> None:
        self.sizes = {"prompts": prompts, "demonstrations": demonstrations, "preferences": pairs}
        self.heldout = heldout
        self.gold_source = CountsB() if gold else None

    def prompts(self, split):
        return [self.noun_prompt(i) for i in self.numbers("prompts", split)]

    def demonstrations(self, split):
        return [Demonstration(self.noun_prompt(i), self.answer(i, 1)) for i in self.numbers("demonstrations", split)]

    def preferences(self, split):
        return [
            PreferencePair(self.noun_prompt(i), "b " + self.answer(i, 2), self.answer(i, 3).replace("b", "a"))
            for i in self.numbers("preferences", split)
        ]

    def numbers(self, kind: str, split: str) -> range:
        size = self.sizes[kind]
        return range(size) if split == "train" else range(size, size + self.heldout)

    def noun_prompt(self, number: int) -> str:
        return " ".join(NOUNS[(number * k + k) % len(NOUNS)] for k in range(1, 2 + number % 3))

    def answer(self, number: int, salt: int) -> str:
        return " ".join(LETTERS[(number * salt + k * k) % len(LETTERS)] for k in range(1 + (number + salt) % 4))

    def tokenizer(self):
        return word_tokenizer(*NOUNS, *LETTERS)

    def gold(self):
        return self.gold_source


class Rows(Listener):
    """Remembers every row and sample."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.samples: list[dict[str, Any]] = []

    def on_row(self, trainer, module, row):
        self.rows.append(dict(row))

    def on_samples(self, trainer, module, samples):
        self.samples += [dict(sample) for sample in samples]

    def untimed(self) -> list[dict[str, float]]:
        """The rows without what the clock says."""
        return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in self.rows]


def tiny(**changes: Any) -> LanguageBackbone:
    """A model of one layer and 16 hidden units."""
    return LanguageBackbone(**{"width": 16, "layers": 1, "heads": 2, "context_length": 16, **changes})


def ppo(task: Task, *, backbone: LanguageBackbone | None = None, **settings: Any) -> PPO:
    """PPO that takes one step on all of a rollout, unless told otherwise."""
    defaults = {"minibatch_size": 8, "inner_epochs": 1, "eval_every": 1000, "optimization": Optimization(lr=1e-2)}
    return PPO(task, backbone or tiny(), **{**defaults, **settings})


def rollouts(task: Task, reward: RewardSource | None = None, *, size: int = 8, **settings: Any) -> RolloutDataModule:
    """Eight responses of at most four tokens."""
    defaults = {"rollout_batch_size": size, "max_new_tokens": 4, "eval_prompts": 2}
    return RolloutDataModule(task, reward or CountsB(), **{**defaults, **settings})


def quiet_trainer(*callbacks: Any, **settings: Any) -> Trainer:
    """A trainer on one CPU process that writes and prints nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, "callbacks": list(callbacks), **settings})


def fit(module: LightningModule, data: LightningDataModule, *callbacks: Any, seed: int = 0, **settings: Any) -> Rows:
    """Train quietly; the rows that were reported."""
    ckpt_path = settings.pop("ckpt_path", None)
    rows = Rows()
    with warnings.catch_warnings(), run_seed_is(seed):
        warnings.filterwarnings("ignore", message=".*(dataloader is not resumable|exists and is not empty).*")
        quiet_trainer(rows, *callbacks, **settings).fit(module, data, ckpt_path=ckpt_path)
    return rows


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two snapshots are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference between two snapshots."""
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


class AtHook(Callback):
    """Calls a function at one of Lightning's hooks, before the module's own.

    Args:
        hook: its name.
        function: gets trainer and module.
    """

    def __init__(self, hook: str, function: Callable[[Trainer, LightningModule], None]) -> None:
        setattr(self, hook, lambda trainer, module, *args: function(trainer, module))


class Iterations(Callback):
    """Keeps what each iteration collected, and what it prepared for the update."""

    def __init__(self) -> None:
        self.scored: list[ScoredRollout] = []
        self.prepared: list[Prepared] = []

    @property
    def batch(self) -> TrainBatch:
        """The batch of the latest iteration."""
        return self.prepared[-1].batch

    def setup(self, trainer: Trainer, module: OnPolicy, stage: str) -> None:
        prepare = module.prepare

        def kept(scored: ScoredRollout) -> Prepared:
            self.scored.append(scored)
            self.prepared.append(prepare(scored))
            return self.prepared[-1]

        module.prepare = kept

    def teardown(self, trainer: Trainer, module: OnPolicy, stage: str) -> None:
        vars(module).pop("prepare", None)


class BeforeUpdate(Callback):
    """Calls a function in each iteration, right before the update.

    Args:
        function: gets trainer, module and the prepared batch, which it may change.
    """

    def __init__(self, function: Callable[[Trainer, OnPolicy, Prepared], None]) -> None:
        self.function = function

    def setup(self, trainer: Trainer, module: OnPolicy, stage: str) -> None:
        update = module.update

        def preceded(prepared: Prepared) -> dict[str, float]:
            self.function(trainer, module, prepared)
            return update(prepared)

        module.update = preceded

    def teardown(self, trainer: Trainer, module: OnPolicy, stage: str) -> None:
        vars(module).pop("update", None)


def poison(trainer: Trainer, module: OnPolicy, prepared: Prepared) -> None:
    """Put NaN, and tokens that were never drawn, wherever the batch is padding; for `BeforeUpdate`."""
    batch = prepared.batch
    hidden = ~batch.action_mask
    assert hidden.any()
    for name in ("old_logprobs", "ref_logprobs", "old_values", "returns", "advantages", "weights"):
        values = getattr(batch, name, None)
        if values is not None:
            setattr(batch, name, values.masked_fill(hidden, float("nan")))
    batch.actions = torch.where(hidden, 7, batch.actions)
