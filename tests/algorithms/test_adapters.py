"""Training adapters alone: what moves, what a resumed run is, and what is exported."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_models import context
from training_helpers import Letters, fit, ppo, rollouts, same, snapshot, tiny

from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.models.state import fingerprint
from rlhf_lightning.training.optimization import Optimization

ACTIONS = torch.tensor([[6, 9, 1]])


def adapted(checkpoint):
    return LanguageBackbone(checkpoint=str(checkpoint), lora=LoRA(rank=2, alpha=3.0))


def logprobs(policy):
    return policy.evaluate(context([5, 9, 10]), ACTIONS, torch.ones_like(ACTIONS).bool()).logprobs


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model that has begun to learn: random embeddings, which adapters leave as they are, would teach little."""
    task, path = Letters(), tmp_path_factory.mktemp("pretrained")
    module = SFT(task, tiny(), Optimization(1e-2))
    fit(module, DemonstrationDataModule(task, 13), max_steps=20, limit_val_batches=0)
    module.export(path)
    return path


def sft(checkpoint, *callbacks, **settings):
    task = Letters()
    module = SFT(task, adapted(checkpoint), Optimization(2e-2, weight_decay=0.1), log_every=1)
    return module, fit(module, DemonstrationDataModule(task, 8), *callbacks, limit_val_batches=0, **settings).untimed()


def moved(network, start):
    return {name for name, tensor in snapshot(network).items() if not torch.equal(tensor, start[name])}


def test_sft_moves_only_adapters_and_exports_what_it_trained(pretrained, tmp_path):
    start = snapshot(adapted(pretrained).policy(None))
    module, rows = sft(pretrained, max_steps=30)
    assert rows[-1]["sft/loss"] < 0.9 * rows[1]["sft/loss"]
    assert moved(module.policy, start) == trained(module.policy)
    assert all(".lora_" in name for name in trained(module.policy))
    module.export(tmp_path)
    with torch.no_grad():
        exported = LanguageBackbone(checkpoint=str(tmp_path)).policy(None)
        torch.testing.assert_close(logprobs(exported), logprobs(module.policy), rtol=0, atol=1e-5)


def test_resumed_sft_with_adapters_is_bit_identical(pretrained, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
    whole, rows = sft(pretrained, keep, max_steps=6, seed=4)
    resumed, rest = sft(pretrained, max_steps=6, seed=4, ckpt_path=tmp_path / "step=3.ckpt")
    assert rest == rows[3:]
    assert same(snapshot(resumed), snapshot(whole))


def test_resumed_ppo_with_adapters_is_bit_identical_and_keeps_its_reference(pretrained, tmp_path):
    task = Letters()

    def run(**settings):
        module = ppo(task, backbone=adapted(pretrained))
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
        return module, fit(module, rollouts(task), keep, max_epochs=3, **settings).untimed()

    whole, rows = run()
    resumed, rest = run(ckpt_path=tmp_path / "epoch=0.ckpt")
    assert rest == rows[2:]
    assert same(snapshot(resumed), snapshot(whole))
    assert fingerprint(resumed.reference.policy) == resumed.reference.fingerprint == whole.reference.fingerprint
    assert moved(whole.policy, snapshot(whole.reference.policy)) == trained(whole.policy)
