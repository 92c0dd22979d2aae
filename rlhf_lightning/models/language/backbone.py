"""`LanguageBackbone`: transformers built from a configuration, or loaded from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.check import check_language_model, check_scorer
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer, load_with_new_heads
from rlhf_lightning.models.language.critic import LanguageCritic, SharedTrunkCritic
from rlhf_lightning.models.language.lora import LoRA, add_adapters, merged_state
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.trunk import context_length

_STYLES = ("gpt2", "llama")


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
        lora: train low-rank adapters instead of the weights. It holds for every network: a critic and a reward model
            get adapters of their own on their trunk, and train their heads whole.
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
        lora: LoRA | None = None,
    ) -> None:
        for name, value in (("width", width), ("layers", layers), ("heads", heads), ("context_length", context_length)):
            if value < 1:
                raise UserError(f"backbone.init_args.{name} must be at least 1, got {value}")
        if style not in _STYLES:
            raise UserError(f"backbone.init_args.style is {style!r}; expected {' or '.join(_STYLES)}")
        if width % heads or (style == "llama" and width // heads % 2):
            raise UserError(
                f"backbone: width ({width}) over heads ({heads}) must be a whole number, and an even one for llama"
            )
        self.style, self.width, self.layers, self.heads = style, width, layers, heads
        self.context_length = context_length
        self.checkpoint = checkpoint
        self.trust_remote_code = trust_remote_code
        self.lora = lora

    def policy(self, tokenizer: Callable[[], PreTrainedTokenizerBase], *, temperature: float = 1.0) -> LanguagePolicy:
        """The checkpoint as a policy, or a model built from scratch on the task's own tokenizer."""
        words = self.tokenizer(tokenizer)
        if self.checkpoint is None:
            model = _from_config(AutoModelForCausalLM, self._config(words))
            return LanguagePolicy(self._adapted(model), words, temperature=temperature)
        model = self._load(AutoModelForCausalLM, self.checkpoint)
        policy = LanguagePolicy(self._adapted(model), words, temperature=temperature)
        check_language_model(policy.model)
        return policy

    def critic(
        self, policy: LanguagePolicy, *, init: str | None = None, shared: bool = False, outputs: int | None = None
    ) -> LanguageCritic | SharedTrunkCritic:
        """A critic that starts from the policy's own trunk, or from the reward model at ``init``.

        With LoRA the policy's adapters are merged into that start, and the critic's own come on top.

        Raises:
            UserError: the reward model's vocabulary is not the policy's, or there is no such critic.
        """
        if shared:
            return SharedTrunkCritic(policy.model.config.get_text_config().hidden_size, outputs)
        if init is not None:
            if (Path(init) / "member_0").is_dir():
                raise UserError(
                    f"the critic cannot start from {init}: it holds several networks; expected one of them, such as "
                    f"{init}/member_0"
                )
            words = load_tokenizer(init, kind="reward model")
            _check_same_vocabulary(words, policy.tokenizer, init)
            model = self._load(AutoModelForSequenceClassification, init, kind="reward model")
            if model.config.num_labels != 1:
                raise UserError(
                    f"the critic cannot start from {init}: it gives {model.config.num_labels} scores; expected a "
                    "reward model that gives one"
                )
            if getattr(model.config, "score_surprise", False):
                raise UserError(
                    f"the critic cannot start from {init}: a part of its scores is the surprise of whole responses; "
                    "expected a reward model with architecture.init_args.surprise false"
                )
            critic = LanguageCritic(self._adapted(model))
            if context_length(critic.model) < policy.context_length:
                raise UserError(
                    f"the critic cannot start from {init}: it reads {context_length(critic.model)} tokens, fewer than "
                    f"the policy's {policy.context_length}"
                )
        else:
            critic = LanguageCritic(self._adapted(_classifier_from(policy.model)))
            nn.init.zeros_(critic.model.score.weight)
        check_scorer(critic.model)
        if outputs is not None:
            critic.split(outputs)
        return critic

    def classifier(
        self, words: PreTrainedTokenizerBase, *, columns: int, seed: int | None
    ) -> tuple[PreTrainedModel, bool]:
        """A sequence-classification model with a label for each column, and whether its head starts anew."""
        auto = AutoModelForSequenceClassification
        if self.checkpoint is None:
            return self._adapted(_from_config(auto, self._config(words, num_labels=columns), seed)), True
        model, new = load_with_new_heads(
            auto, self.checkpoint, trust_remote_code=self.trust_remote_code, num_labels=columns
        )
        if self.lora is not None and not hasattr(model, "score"):
            raise UserError(f"backbone.init_args.lora is for decoders; {type(model).__name__} is none: expected null")
        return self._adapted(self._whole(model, self.checkpoint)), new

    def trunk(self, words: PreTrainedTokenizerBase, *, seed: int | None) -> PreTrainedModel:
        """A model without a head."""
        if self.checkpoint is None:
            return self._adapted(_from_config(AutoModel, self._config(words), seed))
        return self._adapted(self._load(AutoModel, self.checkpoint))

    def tokenizer(self, of_task: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, or the task's own; with a chat template in any case."""
        if self.checkpoint is None:
            words = of_task()
            if not isinstance(words, PreTrainedTokenizerBase):
                raise UserError(
                    "backbone LanguageBackbone answers text, and the task is none; expected ControlBackbone"
                )
            return words
        return load_tokenizer(self.checkpoint, trust_remote_code=self.trust_remote_code)

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

    def _load(self, auto: Any, path: str, *, kind: str = "checkpoint") -> PreTrainedModel:
        return self._whole(load_model(auto, path, kind=kind, trust_remote_code=self.trust_remote_code), path, kind)

    def _whole(self, model: PreTrainedModel, path: str, kind: str = "checkpoint") -> PreTrainedModel:
        if hasattr(model, "peft_config"):  # transformers puts an adapter and its base together, for inference only
            raise UserError(
                f"{kind} {path} is an adapter; expected a whole model: peft's merge_and_unload makes one of it, "
                "and the export of a run has it merged already"
            )
        return model

    def _adapted(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.lora is not None:
            add_adapters(model, self.lora)
        return model


def _from_config(auto: Any, config: PretrainedConfig, seed: int | None = None) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed() if seed is None else seed)
        return auto.from_config(config)


def _classifier_from(model: PreTrainedModel) -> PreTrainedModel:
    """A one-label classifier with a copy of the model's trunk."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    try:
        classifier = _from_config(AutoModelForSequenceClassification, config)
    except ValueError as error:
        raise UserError(
            f"transformers has no sequence-classification model for {config.model_type}, so there is no critic of its "
            "own; share the policy's trunk: model.init_args.critic.shared true"
        ) from error
    classifier.base_model.load_state_dict(merged_state(model.base_model))
    return classifier


def _check_same_vocabulary(other: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, path: str) -> None:
    if other.get_vocab() != own.get_vocab():
        raise UserError(
            f"the critic cannot start from {path}: its vocabulary ({len(other)} tokens) is not the policy's "
            f"({len(own)} tokens); expected a reward model trained with the policy's tokenizer"
        )
