"""PPO's checkpoints: an interrupted run is the run, and nothing else is accepted."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import (
    AtHook,
    BeforeUpdate,
    CountsB,
    Letters,
    fit,
    ppo,
    quiet_trainer,
    rollouts,
    run_seed_is,
    same,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl
from rlhf_lightning.algorithms.ppo import PPO, CriticOptions
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization


def every_iteration(folder):
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)


def adaptive(task, **settings):
    optimization = Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01)
    kl = AdaptiveKLControl(0.1, target=0.05)
    return ppo(task, optimization=optimization, kl=kl, minibatch_size=4, inner_epochs=2, eval_every=2, **settings)


def finished(module, data, *callbacks, **settings):
    """Train; rows and everything that a further iteration would depend on."""
    states = []
    record = AtHook("on_train_end", lambda trainer, _: states.append(trainer.optimizers[0].state_dict()))
    rows = fit(module, data, record, *callbacks, **settings)
    return rows.untimed(), snapshot(module), states[0], module.reference.kl.state_dict()


def flat(optimizer_state):
    """The optimizer's tensors by name."""
    state = optimizer_state["state"]
    return {f"{number}.{name}": tensor for number, entry in state.items() for name, tensor in entry.items()}


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_resumed_run_is_bit_identical(tmp_path, shared):
    critic = CriticOptions(shared=shared, warmup=1)
    task = Letters()
    whole = finished(adaptive(task, critic=critic), rollouts(task), every_iteration(tmp_path), max_epochs=4)
    checkpoint = tmp_path / "epoch=1.ckpt"
    resumed = finished(adaptive(task, critic=critic), rollouts(task), max_epochs=4, ckpt_path=checkpoint)
    assert [row["iteration"] for row in whole[0]] == [0, 1, 2, 3, 4]
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])
    assert same(flat(resumed[2]), flat(whole[2]))
    assert resumed[2]["param_groups"] == whole[2]["param_groups"]
    assert resumed[3] == whole[3]
    assert resumed[3]["coef"] != 0.1


def test_checkpoint_loads_without_unpickling_and_holds_no_reference(tmp_path):
    task = Letters()
    fit(adaptive(task), rollouts(task), every_iteration(tmp_path), max_epochs=1)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert {name.split(".")[0] for name in names} == {"policy", "critic"}
    assert checkpoint["kl_control"]["coef"] == pytest.approx(0.09)  # the next iteration's
    assert checkpoint["reference"]["path"] is None
    assert checkpoint["iteration"] == 1


def test_another_reference_is_refused(tmp_path):
    task = Letters()
    fit(adaptive(task), rollouts(task), every_iteration(tmp_path), max_epochs=1)
    with pytest.raises(UserError, match="reference policy is not the one of the checkpoint"):
        fit(adaptive(task), rollouts(task), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt", seed=1)


def test_checkpoint_of_another_critic_is_refused(tmp_path):
    task = Letters()
    fit(adaptive(task, critic=CriticOptions(shared=True)), rollouts(task), every_iteration(tmp_path), max_epochs=1)
    with pytest.raises(RuntimeError, match="critic"):
        fit(adaptive(task), rollouts(task), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")


def test_checkpoint_without_a_reference_is_refused(tmp_path):
    task = Letters()
    module = adaptive(task)
    with pytest.raises(UserError, match="not one of PPO"):
        module.on_load_checkpoint({"state_dict": {}, "global_step": 3})


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_reference_from_a_folder_is_recognized_in_any_precision(tmp_path, precision):
    task = Letters()
    tiny().policy(task.tokenizer, temperature=1.0).save(tmp_path / "start")
    backbone = tiny(checkpoint=str(tmp_path / "start"))

    def run(**settings):
        module = adaptive(task, backbone=backbone)
        rows = fit(module, rollouts(task), every_iteration(tmp_path / "run"), precision=precision, **settings)
        return rows.untimed(), snapshot(module)

    whole = run(max_epochs=2)
    resumed = run(max_epochs=2, ckpt_path=tmp_path / "run" / "epoch=0.ckpt")
    assert resumed[0] == whole[0][2:]
    assert same(resumed[1], whole[1])


def test_checkpoint_is_evaluated_as_it_was_in_training(tmp_path):
    task = Letters()
    rows = fit(adaptive(task), rollouts(task), every_iteration(tmp_path), max_epochs=2).rows
    module, data = adaptive(task), rollouts(task)
    [row] = quiet_trainer().validate(module, data, ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert row["iteration"] == 2
    evaluation = {name: value for name, value in rows[-1].items() if name.startswith("eval/")}
    assert {name: row[name] for name in evaluation} == pytest.approx(evaluation, rel=1e-6)


def test_module_is_loaded_without_a_trainer(tmp_path):
    task = Letters()
    module = adaptive(task)
    fit(module, rollouts(task), every_iteration(tmp_path), max_epochs=2)
    with run_seed_is(0):
        loaded = PPO.load_from_checkpoint(tmp_path / "epoch=1.ckpt", task=task, backbone=tiny(), kl=AdaptiveKLControl())
    assert same(snapshot(loaded), snapshot(module))
    assert loaded.reference.kl.coef == module.reference.kl.coef


class Fails(CountsB):
    """NaN for one prompt, from the second iteration on."""

    def __init__(self, prompt):
        super().__init__()
        self.prompt, self.calls = prompt, 0

    def score(self, prompts, responses):
        self.calls += 1
        scores = super().score(prompts, responses)
        if self.calls > 5:  # the trial, the start and its reference, iteration 1 with its evaluation
            scores[list(prompts).index(self.prompt)] = float("nan")
        return scores


def stop_with(task, folder, message, *callbacks, reward=None, **settings):
    """Fail in the second iteration; the checkpoint of the first must be kept, and whole."""
    module = ppo(task, eval_every=1, **settings)
    states = []
    record = AtHook("on_train_epoch_end", lambda _, m: states.append(snapshot(m.policy)))
    with pytest.raises(UserError, match=message) as stop:
        fit(module, rollouts(task, reward), record, every_iteration(folder), *callbacks, max_epochs=3)
    assert "\n" not in str(stop.value)
    assert [path.name for path in folder.iterdir()] == ["epoch=0.ckpt"]
    kept = torch.load(folder / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert same({name: kept[f"policy.{name}"] for name in states[0]}, states[0])
    return str(stop.value)


def in_second_iteration(hook, change):
    return AtHook(hook, lambda trainer, module: change(module) if trainer.current_epoch == 1 else None)


def test_reward_that_is_not_finite_names_iteration_and_prompt(tmp_path):
    task = Letters(prompts=8)
    prompt = task.prompts("train")[3]
    message = stop_with(task, tmp_path, "iteration 2", reward=Fails(prompt))
    assert repr(prompt) in message
    assert "nan" in message


@pytest.mark.parametrize("network", ["policy", "critic"])
def test_numbers_of_a_rollout_that_are_not_finite_name_iteration_and_prompt(tmp_path, network):
    def spoil(module):
        model = (module.policy if network == "policy" else module.critic.network).model
        with torch.no_grad():
            model.transformer.wte.weight[module.policy.tokenizer.vocab["cat"]] = math.nan

    task = Letters(prompts=8)
    name = {"policy": "logprobs", "critic": "values"}[network]
    # with tied embeddings every logprob of the policy is NaN, but only one prompt has a cat in it for the critic
    line = rf"{name} are not finite for the prompt .* \(at iteration 2;"
    message = stop_with(task, tmp_path, line, in_second_iteration("on_train_epoch_start", spoil))
    if network == "critic":
        assert "cat" in message.partition("prompt")[2]


def test_loss_that_is_not_finite_names_the_iteration(tmp_path):
    def spoil(trainer, module, prepared):
        if trainer.current_epoch == 1:
            prepared.batch.advantages[0, 0] = math.inf

    stop_with(Letters(), tmp_path, "loss is .* at iteration 2", BeforeUpdate(spoil))


def test_gradient_that_is_not_finite_names_network_and_iteration(tmp_path):
    def spoil(module):
        module.critic.network.model.score.weight.register_hook(lambda gradient: gradient * math.nan)

    stop_with(
        Letters(), tmp_path, "gradient of the value .* iteration 2", in_second_iteration("on_train_batch_start", spoil)
    )
