"""Which networks a run uses: built from a configuration, or loaded from a checkpoint."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.policy import LanguagePolicy
from rlhf_lightning.models.scorers import LanguageCritic, LanguageRewardModel, SharedTrunkCritic
from rlhf_lightning.models.text import PLAIN_CHAT_TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Callable


class Backbone(ABC):
    """Builds the networks of a run: policy, critic and reward model."""

    @abstractmethod
    def policy(self, tokenizer: Callable[[], PreTrainedTokenizerBase], *, temperature: float) -> LanguagePolicy:
        """A policy at its starting point."""

    @abstractmethod
    def critic(self, policy: LanguagePolicy, *, init: str | None) -> LanguageCritic:
        """A critic for the policy, started from a reward model where one is given."""

    @abstractmethod
    def reward_model(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> LanguageRewardModel:
        """A reward model at its starting point."""


class LanguageBackbone(Backbone):
    """Transformers on text: a small one built from scratch, or any causal language-model checkpoint.

    Args:
        style: architecture of a model built from scratch.
        width: size of its hidden states.
        layers: number of its blocks.
        heads: attention heads per block.
        context_length: most tokens of prompt and response together.
        checkpoint: folder or hub name of a causal language model; the arguments above are then not used.
        trust_remote_code: run model code that comes with a checkpoint; only for checkpoints that you trust.
    """

    def __init__(
        self,
        style: Literal["gpt2", "llama"] = "gpt2",
        width: int = 96,
        layers: int = 3,
        heads: int = 4,
        context_length: int = 128,
        checkpoint: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if width % heads:
            raise UserError(f"backbone: heads ({heads}) must divide width ({width})")
        self.style, self.width, self.layers, self.heads = style, width, layers, heads
        self.context_length = context_length
        self.checkpoint = checkpoint
        self.trust_remote_code = trust_remote_code

    def policy(self, tokenizer: Callable[[], PreTrainedTokenizerBase], *, temperature: float = 1.0) -> LanguagePolicy:
        """The checkpoint as a policy, or a model built from scratch on the task's own tokenizer."""
        words = self.tokenizer(tokenizer)
        if self.checkpoint is None:
            model = self._from_config(AutoModelForCausalLM, self._config(words))
        else:
            model = self._load(AutoModelForCausalLM, self.checkpoint)
        return LanguagePolicy(model, words, temperature=temperature)

    def critic(
        self, policy: LanguagePolicy, *, init: str | None = None, shared: bool = False
    ) -> LanguageCritic | SharedTrunkCritic:
        """A critic that starts from the policy's own trunk, or from the reward model at ``init``.

        Raises:
            UserError: the reward model's vocabulary is not the policy's.
        """
        if shared:
            return SharedTrunkCritic(policy.model.config.get_text_config().hidden_size)
        if init is not None:
            model = self._load(AutoModelForSequenceClassification, init, num_labels=1)
            _check_same_vocabulary(AutoTokenizer.from_pretrained(init), policy.tokenizer, init)
        else:
            model = self._classifier_from(policy.model)
        with torch.no_grad():
            model.score.weight.zero_()
        return LanguageCritic(model)

    def reward_model(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> LanguageRewardModel:
        """A reward model on the checkpoint's trunk, or built from scratch."""
        words = self.tokenizer(tokenizer)
        if self.checkpoint is None:
            model = self._from_config(AutoModelForSequenceClassification, self._config(words, num_labels=1))
        else:
            model = self._load(AutoModelForSequenceClassification, self.checkpoint, num_labels=1)
        with torch.no_grad():
            model.score.weight.zero_()
        return LanguageRewardModel(model, words)

    def tokenizer(self, of_task: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, or the task's own; with a chat template in any case."""
        if self.checkpoint is None:
            return of_task()
        words = _loading(
            self.checkpoint,
            lambda: AutoTokenizer.from_pretrained(self.checkpoint, trust_remote_code=self.trust_remote_code),
        )
        if words.chat_template is None:
            words.chat_template = PLAIN_CHAT_TEMPLATE
        return words

    def _config(self, words: PreTrainedTokenizerBase, **more: Any) -> PretrainedConfig:
        shape = {
            "gpt2": {
                "n_embd": self.width,
                "n_layer": self.layers,
                "n_head": self.heads,
                "n_positions": self.context_length,
            },
            "llama": {
                "hidden_size": self.width,
                "intermediate_size": 8 * self.width // 3,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.heads,
                "max_position_embeddings": self.context_length,
                "tie_word_embeddings": True,
            },
        }[self.style]
        return AutoConfig.for_model(
            self.style,
            vocab_size=len(words),
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id if words.pad_token_id is not None else words.eos_token_id,
            **shape,
            **more,
        )

    def _from_config(self, auto: Any, config: PretrainedConfig) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run_seed())
            return auto.from_config(config)

    def _load(self, auto: Any, path: str, **more: Any) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run_seed())
            return _loading(
                path,
                lambda: auto.from_pretrained(
                    path, dtype=torch.float32, trust_remote_code=self.trust_remote_code, **more
                ),
            )

    def _classifier_from(self, model: PreTrainedModel) -> PreTrainedModel:
        """A one-label classifier with a copy of the model's trunk."""
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        classifier = self._from_config(AutoModelForSequenceClassification, config)
        classifier.base_model.load_state_dict(model.base_model.state_dict())
        return classifier


def _loading(path: str, load: Callable[[], Any]) -> Any:
    """Run a loader; a checkpoint that is missing or unreadable ends in one line."""
    looks_local = path.startswith((".", os.sep, "~")) or path.count("/") != 1 or Path(path).parent.is_dir()
    if looks_local and "/" in path and not Path(path).exists():
        raise UserError(
            f"checkpoint {path} does not exist; the supervised stage makes it: "
            "python -m rlhf_lightning fit --config TASK.yaml --config configs/algorithms/sft.yaml --name NAME "
            "writes runs/NAME/export"
        )
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be loaded: {reason}") from error


def _check_same_vocabulary(other: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, path: str) -> None:
    if other.get_vocab() != own.get_vocab():
        raise UserError(
            f"the critic cannot start from {path}: its vocabulary ({len(other)} tokens) is not the policy's "
            f"({len(own)} tokens); expected a reward model trained with the policy's tokenizer"
        )
