"""Low-rank adapters: a trained product of two thin matrices beside each frozen weight matrix.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3: W x + (α / r) B A x. A starts at random and
B at 0, so an adapted model starts equal to the original. The layers are those of the peft library, injected into the
transformers model itself, so that all code that runs the model runs the adapted one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.trunk import score_layer
from rlhf_lightning.models.state import seeded

if TYPE_CHECKING:  # imported where it is used: most runs do without
    from peft import LoraConfig

FOLDER = "adapter"
"""Folder of the adapter in an export."""

_ADAPTER = "default"


@dataclass(frozen=True)
class LoRA:
    """Train adapters instead of the model's own weights.

    There is deliberately no dropout: a ratio of two evaluations must not compare two dropout masks.

    Meant for checkpoints: a model built from scratch would keep its random embeddings and learn little. The best
    learning rate is about ten times that of full fine-tuning.

    Args:
        rank: r, the width of the adapters, 4 to 64.
        alpha: α; the adapters' output is multiplied by α / r.
        target_modules: names of the linear layers that get an adapter, such as ``q_proj``; None for all layers of the
            trunk, since adapting attention alone is worse than full fine-tuning (Schulman et al. 2025, "LoRA Without
            Regret").
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha must be above 0, got {self.alpha}")
        if self.target_modules is not None and not self.target_modules:
            raise UserError("lora.target_modules is empty; expected names of layers, or null for all linear ones")


def add_adapters(model: PreTrainedModel, lora: LoRA) -> None:
    """Inject adapters into a model's trunk; only they train, and the scoring head if there is one.

    They are initialized with the seed of the run.

    Raises:
        UserError: the trunk has no linear layer of one of the target names.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    layers = {name: layer for name, layer in model.base_model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    targets = _targets(lora, layers, type(model).__name__)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft computes with any number
        target_modules=targets,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type=TaskType.SEQ_CLS if hasattr(model, "score") else TaskType.CAUSAL_LM,
        base_model_name_or_path=model.name_or_path or None,
    )
    with seeded():
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    if hasattr(model, "score"):
        score_layer(model).requires_grad_(True)


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of the equivalent model without adapters; the module itself does not change."""
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name.partition(".lora_")[0] in adapted:
            continue
        layer, _, parameter = name.partition(".base_layer.")
        if layer in adapted and parameter == "weight":
            tensor = tensor + adapted[layer].get_delta_weight(_ADAPTER)
        state[name.replace(".base_layer.", ".")] = tensor
    return state


def save_merged(model: PreTrainedModel, path: Path) -> None:
    """Write a model in the Hugging Face format with adapters merged, and the adapter alone in the format of peft."""
    model.save_pretrained(path, state_dict=merged_state(model))
    if hasattr(model, "peft_config"):
        _save_adapter(model, path / FOLDER)


def _save_adapter(model: PreTrainedModel, path: Path) -> None:
    """Write the adapter, with the scoring head if there is one, for ``peft.PeftModel.from_pretrained(base, path)``."""
    from peft import get_peft_model_state_dict

    config = cast("LoraConfig", copy.deepcopy(model.peft_config[_ADAPTER]))
    config.inference_mode = True
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER, save_embedding_layers=False)
    if hasattr(model, "score"):
        config.modules_to_save = ["score"]
        state["score.weight"] = score_layer(model).weight.detach()
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(path))
    weights = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(lora: LoRA, layers: Mapping[str, nn.Module], model: str) -> list[str]:
    """Names of the layers to adapt; each must occur in the trunk."""
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in lora.target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UserError(
                f"lora.target_modules: the trunk of {model} has no linear layer named {target!r}; "
                f"expected some of {', '.join(known)}"
            )
    return list(lora.target_modules or known)
