"""`LanguageBackbone`: transformers built from a configuration, or loaded from a checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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

from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.check import check_language_model, check_scorer
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer, load_with_new_heads
from rlhf_lightning.models.language.critic import LanguageCritic, SharedTrunkCritic
from rlhf_lightning.models.language.lora import LoRA, add_adapters, merged_state
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.spelling import READ
from rlhf_lightning.models.language.trunk import context_length, score_layer
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.state import seeded

log = logging.getLogger(__name__)

_STYLES = ("gpt2", "llama")


class LanguageBackbone(Backbone):
    """Transformers on text: a small one built from scratch, or any causal language-model checkpoint.

    Args:
        style: architecture of a model built from scratch.
        width: size of its hidden states.
        layers: number of its blocks.
        heads: attention heads per block.
        context_length: maximum number of tokens of prompt and response together.
        checkpoint: folder or hub name of a causal language model; the arguments above are then not used. The auxiliary
            loss that keeps the routers of a mixture of experts balanced is left out: no algorithm adds it to its own.
        trust_remote_code: run model code that comes with a checkpoint; only for checkpoints that you trust.
        special_tokens_in_text: special tokens that texts spell out are read as such, for data that is rendered already
            or marks answers with them; otherwise they are plain text. Exports keep the setting.
        lora: train low-rank adapters instead of the weights. This applies to every network: a critic and a reward
            model get adapters of their own on their trunk, and train all weights of their heads.
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
        special_tokens_in_text: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        check_counts("backbone.init_args", width=width, layers=layers, heads=heads, context_length=context_length)
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
        self.special_tokens_in_text = special_tokens_in_text
        self.lora = lora

    def reads(self) -> list[str]:
        """The folder of the checkpoint."""
        return [] if self.checkpoint is None else [self.checkpoint]

    def policy(self, interface: Callable[[], object], *, temperature: float = 1.0) -> LanguagePolicy:
        """The checkpoint as a policy, or a model built from scratch for the task's own tokenizer."""
        tokenizer = self.tokenizer(interface)
        model = self._model(AutoModelForCausalLM, tokenizer)
        policy = LanguagePolicy(model, tokenizer, temperature=temperature)
        if self.checkpoint is not None:
            check_language_model(policy.model)
            if getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0):
                log.warning("checkpoint %s: the auxiliary loss of its routers is left out", self.checkpoint)
        return policy

    def critic(
        self, policy: Policy, *, init: str | None = None, shared: bool = False, outputs: int | None = None
    ) -> LanguageCritic | SharedTrunkCritic:
        """A critic that starts from a copy of the policy's trunk, or from the reward model at ``init``.

        With LoRA, the policy's adapters are merged into the copy, and the critic gets adapters of its own.

        Raises:
            UserError: the reward model does not fit the policy, or transformers has no such critic.
        """
        assert isinstance(policy, LanguagePolicy)
        if shared:
            return SharedTrunkCritic(policy.model.config.get_text_config().hidden_size, outputs)
        if init is not None:
            critic = LanguageCritic(self._adapted(self._reward_model(init, policy)))
        else:
            critic = LanguageCritic(self._adapted(_classifier_from(policy.model, outputs or 1)), outputs)
        check_scorer(critic.model)
        if init is None:
            nn.init.zeros_(score_layer(critic.model).weight)
        return critic

    def _reward_model(self, path: str, policy: LanguagePolicy) -> PreTrainedModel:
        """A reward model as a starting point of the policy's critic: one decoder with one score and fitting tokens."""
        refusal = f"the critic cannot start from {path}:"
        if (Path(path) / "member_0").is_dir():
            raise UserError(f"{refusal} it holds several networks; expected one of them, such as {path}/member_0")
        tokenizer = load_tokenizer(path, kind="reward model")
        if tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise UserError(
                f"{refusal} its vocabulary ({len(tokenizer)} tokens) is not the policy's "
                f"({len(policy.tokenizer)} tokens); expected a reward model trained with the policy's tokenizer"
            )
        model = self._load(AutoModelForSequenceClassification, path, kind="reward model")
        if model.config.num_labels != 1:
            raise UserError(
                f"{refusal} it gives {model.config.num_labels} scores; expected a reward model that gives one"
            )
        if getattr(model.config, "score_surprise", False):
            raise UserError(
                f"{refusal} a part of its scores is the surprise of whole responses; "
                "expected a reward model with architecture.init_args.surprise false"
            )
        if context_length(model) < policy.context_length:
            raise UserError(
                f"{refusal} it reads {context_length(model)} tokens, fewer than the policy's {policy.context_length}"
            )
        return model

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, *, outputs: int, seed: int | None
    ) -> tuple[PreTrainedModel, bool]:
        """A sequence-classification model with a label for each output, and whether its head is newly initialized."""
        auto = AutoModelForSequenceClassification
        if self.checkpoint is None:
            return self._adapted(_from_config(auto, self._config(tokenizer, num_labels=outputs), seed)), True
        model, new = load_with_new_heads(
            auto, self.checkpoint, trust_remote_code=self.trust_remote_code, num_labels=outputs
        )
        if self.lora is not None and not hasattr(model, "score"):
            raise UserError(f"backbone.init_args.lora is for decoders; {type(model).__name__} is none: expected null")
        return self._adapted(_without_adapter(model, self.checkpoint, "checkpoint")), new

    def trunk(self, tokenizer: PreTrainedTokenizerBase, *, seed: int | None) -> PreTrainedModel:
        """A model without a head."""
        return self._model(AutoModel, tokenizer, seed)

    def tokenizer(self, interface: Callable[[], object]) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, or the task's own; both have a chat template."""
        if self.checkpoint is not None:
            tokenizer: object = load_tokenizer(self.checkpoint, trust_remote_code=self.trust_remote_code)
        else:
            tokenizer = interface()
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError("backbone LanguageBackbone answers text, and the task is none; expected ControlBackbone")
        if self.special_tokens_in_text:
            tokenizer.init_kwargs[READ] = True
        return tokenizer

    def _model(self, auto: Any, tokenizer: PreTrainedTokenizerBase, seed: int | None = None) -> PreTrainedModel:
        """The checkpoint, or a model built from scratch; with adapters if they are what trains."""
        if self.checkpoint is None:
            return self._adapted(_from_config(auto, self._config(tokenizer), seed))
        return self._adapted(self._load(auto, self.checkpoint))

    def _config(self, tokenizer: PreTrainedTokenizerBase, **more: Any) -> PretrainedConfig:
        if self.style == "llama":
            more["intermediate_size"] = 8 * self.width // 3
        return AutoConfig.for_model(
            self.style,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context_length,
            tie_word_embeddings=True,
            **more,
        )

    def _load(self, auto: Any, path: str, *, kind: str = "checkpoint") -> PreTrainedModel:
        model = load_model(auto, path, kind=kind, trust_remote_code=self.trust_remote_code)
        return _without_adapter(model, path, kind)

    def _adapted(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.lora is not None:
            add_adapters(model, self.lora)
        return model


def _without_adapter(model: PreTrainedModel, path: str, kind: str) -> PreTrainedModel:
    """The model; a `UserError` if transformers has loaded an adapter into its base, which is for inference only."""
    if hasattr(model, "peft_config"):
        raise UserError(
            f"{kind} {path} is an adapter; expected a whole model: peft's merge_and_unload makes one of it, "
            "and the export of a run has it merged already"
        )
    return model


def _from_config(auto: Any, config: PretrainedConfig, seed: int | None = None) -> PreTrainedModel:
    with seeded(seed):
        return auto.from_config(config)


def _classifier_from(model: PreTrainedModel, labels: int) -> PreTrainedModel:
    """A classifier with a copy of the model's trunk."""
    config = copy.deepcopy(model.config)
    config.num_labels = labels
    try:
        classifier = _from_config(AutoModelForSequenceClassification, config)
    except ValueError as error:
        raise UserError(
            f"transformers has no sequence-classification model for {config.model_type}, so there is no critic of its "
            "own; share the policy's trunk: model.init_args.critic.shared true"
        ) from error
    classifier.base_model.load_state_dict(merged_state(model.base_model))
    return classifier
