"""Low-rank adapters: a trained product of two thin matrices beside each frozen weight matrix.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3: W x + (α / r) B A x. A starts at random and
B at 0, so an adapted model starts equal to the original. The layers are those of the peft library, injected into the
transformers model itself, so that all code that runs the model runs the adapted one.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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

log = logging.getLogger(__name__)

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
        target_modules: names of the layers that get an adapter, such as ``q_proj``, or ``gate_up_proj`` for the experts
            of a mixture, each of which gets its own; None for all linear layers and experts of the trunk, since
            adapting attention alone is worse than full fine-tuning (Schulman et al. 2025, "LoRA Without Regret").
            Embeddings have none, nor have matrices that are no layer of their own, such as the routers of most
            mixtures: one line names them.
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

    They are initialized with the seed of the run. One line says which matrices of the trunk get none.

    Raises:
        UserError: the trunk has no layer of one of the target names.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    weights, others = _weights(model.base_model)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft computes with any number
        task_type=TaskType.SEQ_CLS if hasattr(model, "score") else TaskType.CAUSAL_LM,
        base_model_name_or_path=model.name_or_path or None,
        **_targets(lora, model, weights),
    )
    with seeded():
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    if hasattr(model, "score"):
        score_layer(model).requires_grad_(True)
    if others and lora.target_modules is None:
        log.warning("LoRA does not adapt %s of %s", ", ".join(others), type(model).__name__)


def merged_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer with its adapter added, if it has one."""
    adapted = cast(Any, layer)
    if not hasattr(layer, "get_delta_weight"):
        return cast(Tensor, adapted.weight)
    return cast(Tensor, adapted.base_layer.weight + adapted.get_delta_weight(_ADAPTER))


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of the equivalent model without adapters; the module itself does not change."""
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    layers = {f"{_plain(name)}.{getattr(layer, 'parameter_name', 'weight')}": layer for name, layer in adapted.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name.partition(".lora_")[0] in adapted:
            continue
        layer = layers.get(_plain(name))
        state[_plain(name)] = tensor if layer is None else tensor + layer.get_delta_weight(_ADAPTER)
    return state


def _plain(name: str) -> str:
    """A name without the adapters around it; those of one module's several weights are around each other."""
    return name.replace(".base_layer", "")


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


def _weights(trunk: nn.Module) -> tuple[dict[str, nn.Parameter], list[str]]:
    """The weights that can have an adapter, by name of their layer, and the names of matrices that get none.

    Mixtures of experts keep the weights of all experts of a layer in one parameter, [experts, in, out] or transposed.
    """
    weights: dict[str, nn.Parameter] = {}
    others: dict[str, None] = {}
    for name, module in trunk.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or isinstance(module, nn.Embedding):
                continue
            if (isinstance(module, nn.Linear | Conv1D) and own == "weight") or (
                parameter.ndim == 3 and not isinstance(module, nn.Conv1d)
            ):
                weights[f"{name}.{own}".removesuffix(".weight")] = parameter
            else:
                others[".".join(f"{name}.{own}".split(".")[-2:])] = None
    return weights, list(others)


def _targets(lora: LoRA, model: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """The weights to adapt, as arguments of peft; each name must occur in the trunk."""
    known = sorted({name.rpartition(".")[2] for name in weights})
    targets = lora.target_modules or known
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in weights):
            raise UserError(
                f"lora.target_modules: the trunk of {type(model).__name__} has no linear layer named {target!r}; "
                f"expected some of {', '.join(known)}"
            )
    if all(weight.ndim == 2 for weight in weights.values()):
        conv1d = any(isinstance(module, Conv1D) for module in model.base_model.modules())
        return {"target_modules": targets, "fan_in_fan_out": conv1d}
    # Every weight as a parameter, since peft reads layers named gate_proj, w1, … as an older form of the experts.
    chosen = {id(weight) for name, weight in weights.items() if any(f".{name}".endswith(f".{t}") for t in targets)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in chosen]
    return {"target_modules": [], "target_parameters": names}
