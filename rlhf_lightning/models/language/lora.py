"""Low-rank adapters: a trained product of two thin matrices beside each frozen weight matrix.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3: W x + (α / r) B A x. A starts at random and
B at 0, so an adapted model starts as the model that it adapts. The layers are those of the peft library, put into the
transformers model itself: whatever runs the model runs the adapted one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:  # imported where it is used: most runs do without
    from peft import LoraConfig

FOLDER = "adapter"
"""Where the adapter lies in an export."""

_ADAPTER = "default"


@dataclass(frozen=True)
class LoRA:
    """Train adapters instead of the model's own weights.

    There is no dropout on purpose: a ratio of two evaluations must not compare two dropout masks.

    For checkpoints: a model from scratch keeps its random embeddings, and learns little. The best learning rate is
    about ten times that of full fine-tuning.

    Args:
        rank: r, width of the adapters, 4 to 64.
        alpha: α, the adapters' output is multiplied by α / r.
        target_modules: names of the linear layers that get one, such as ``q_proj``; None for all of the trunk, since
            attention alone falls short of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret").
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
    """Put adapters into a model's trunk; they and a scoring head, where it has one, are all that trains.

    Where they start is a function of the run's seed.

    Raises:
        UserError: the trunk has no linear layers of the names asked for.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    head = getattr(model, "score", None)
    layers = {n: layer for n, layer in model.base_model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    targets = _targets(lora, layers, type(model).__name__)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type=TaskType.CAUSAL_LM if head is None else TaskType.SEQ_CLS,
        base_model_name_or_path=model.name_or_path or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed())
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    if head is not None:
        head.requires_grad_(True)


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """What ``state_dict`` would be without adapters, had their products been added to the weights; changes nothing."""
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name.partition(".lora_")[0] in adapted:
            continue
        layer, _, own = name.partition(".base_layer.")
        merged = tensor + adapted[layer].get_delta_weight(_ADAPTER) if layer in adapted and own == "weight" else tensor
        state[name.replace(".base_layer.", ".")] = merged
    return state


def save_merged(model: PreTrainedModel, path: Path) -> None:
    """Write a model in the Hugging Face format, adapters merged; and the adapter by itself, in that of peft."""
    model.save_pretrained(path, state_dict=merged_state(model))
    if hasattr(model, "peft_config"):
        _save_adapter(model, path / FOLDER)


def _save_adapter(model: PreTrainedModel, path: Path) -> None:
    """What ``peft.PeftModel.from_pretrained(base, path)`` reads; a scoring head goes with it."""
    from peft import get_peft_model_state_dict

    config: LoraConfig = copy.deepcopy(model.peft_config[_ADAPTER])
    config.inference_mode = True
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER, save_embedding_layers=False)
    if hasattr(model, "score"):
        config.modules_to_save = ["score"]
        state["score.weight"] = model.score.weight.detach()
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    weights = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(lora: LoRA, layers: Mapping[str, nn.Module], model: str) -> list[str]:
    """Names of the layers to adapt, each found in the trunk."""
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in lora.target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UserError(
                f"lora.target_modules: the trunk of {model} has no linear layer named {target!r}; "
                f"expected some of {', '.join(known)}"
            )
    return list(lora.target_modules or known)
