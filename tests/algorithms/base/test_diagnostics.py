"""Diagnostics of updates: against the optimizers' own numbers, and without any effect on training."""

import pytest
from training_helpers import CountsB, Letters, Rows, fit, ppo, quiet_trainer, rollouts, same, snapshot, tiny

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.base.diagnostics import GradientDiagnostics, KLDiagnostics
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import NoBaseline, ValueBaseline
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.training.optimization import Optimization

GRADIENT = ("policy/grad_variance", "policy/grad_snr", "policy/grad_cosine")
AGAINST = ("policy/grad_cosine_against", "policy/grad_variance_against")
KL = ("policy/kl_predicted", "policy/kl_measured")


def groups(task, **settings):
    return rollouts(task, CountsB(), size=12, samples_per_prompt=3, **settings)


def on_text(algorithm, **settings):
    task = Letters()
    module = algorithm(task, tiny(), Optimization(lr=1e-2), **{"eval_every": 1000, **settings})
    return module, groups(task)


def in_environment(algorithm, **settings):
    task = Control("CartPole-v1")
    module = algorithm(task, ControlBackbone(hidden=[8]), kl=KLControl(0.0), eval_every=1000, gamma=0.99, **settings)
    return module, EnvironmentDataModule(task, 4, 64, eval_episodes=3)


def ppo_of(task, backbone, optimization, **settings):
    return ppo(task, backbone=backbone, optimization=optimization, **settings)


BUILT = {
    "ppo": lambda: on_text(ppo_of, minibatch_size=4, inner_epochs=2),
    "ppo with a shared trunk": lambda: on_text(ppo_of, minibatch_size=4, critic=CriticOptions(shared=True)),
    "rloo": lambda: on_text(RLOO),
    "grpo": lambda: on_text(GRPO, dynamic_sampling=2),
    "raft": lambda: on_text(RAFT),
    "trpo": lambda: on_text(TRPO, minibatch_size=4),
    "npg in an environment": lambda: in_environment(NPG),
    "a2c in an environment": lambda: in_environment(A2C),
}


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "32-true") for name in BUILT), ("ppo", "bf16-mixed"), ("rloo", "64-true")]
)
def test_measuring_changes_nothing(name, precision):
    (plain, data), (watched, same_data) = BUILT[name](), BUILT[name]()
    measures, how = (GradientDiagnostics(every=1), KLDiagnostics(every=1)), {"max_epochs": 2, "precision": precision}
    expected = fit(plain, data, **how).untimed()
    found = fit(watched, same_data, *measures, **how).untimed()
    assert all(name in row for row in found[1:] for name in (*GRADIENT, *KL))
    assert [{name: x for name, x in row.items() if name not in (*GRADIENT, *KL)} for row in found] == expected
    assert same(snapshot(plain), snapshot(watched))


def test_measuring_adapters_looks_at_them_alone(tmp_path):
    task = Letters()
    start = SFT(task, tiny())
    start.configure_model()
    start.export(tmp_path)
    module = REINFORCE(task, tiny(checkpoint=str(tmp_path), lora=LoRA(rank=2)), Optimization(lr=1e-2))
    (row,) = fit(module, groups(task), GradientDiagnostics(), KLDiagnostics(), max_epochs=1).rows[1:]
    # B starts at 0, so A has no gradient yet, and neither has the KL of the first step a part that A moved
    assert row["policy/grad_variance"] > 0
    assert row["policy/kl_predicted"] == pytest.approx(row["policy/kl_measured"], rel=0.2)


def test_measurements_are_made_every_so_often():
    module, data = on_text(REINFORCE)
    rows = fit(module, data, GradientDiagnostics(every=3), KLDiagnostics(every=2), max_epochs=4).rows
    assert [row["iteration"] for row in rows if "policy/grad_variance" in row] == [1, 4]
    assert [row["iteration"] for row in rows if "policy/kl_measured" in row] == [1, 3]


def test_a_policy_that_waits_for_its_critic_is_not_measured():
    module, data = on_text(A2C)
    module.critic.warmup = 1
    rows = fit(module, data, GradientDiagnostics(every=1), max_epochs=2).rows
    assert [row["iteration"] for row in rows if "policy/grad_variance" in row] == [2]


# -- the KL of a step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [TRPO, NPG])
def test_measured_kl_is_the_one_that_the_trust_region_goes_by(algorithm):
    module, data = on_text(algorithm, minibatch_size=4)
    (row,) = fit(module, data, KLDiagnostics(), max_epochs=1, precision="64-true").rows[1:]
    assert row["policy/kl_measured"] == pytest.approx(row["trust_region/kl"], rel=1e-9)


def test_prediction_is_right_to_second_order():
    # What it leaves out is of third order in the step at least: a tenth of the step, a tenth of the relative error.
    errors = []
    for lr in (1e-3, 1e-4):
        module, data = on_text(REINFORCE)
        module.optimization = Optimization(lr=lr)
        (row,) = fit(module, data, KLDiagnostics(), max_epochs=1, precision="64-true").rows[1:]
        errors.append(abs(row["policy/kl_predicted"] / row["policy/kl_measured"] - 1))
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 9


# -- another optimizer on the same rollout ---------------------------------------------------------------------


def test_an_optimizer_against_itself_agrees():
    module, data = on_text(RLOO, kl=KLControl(0.1))
    callback = GradientDiagnostics(against=lambda task, backbone: RLOO(task, backbone, kl=KLControl(0.1)))
    (row,) = fit(module, data, callback, max_epochs=1).rows[1:]
    assert row["policy/grad_cosine_against"] == pytest.approx(1)
    assert row["policy/grad_variance_against"] == pytest.approx(row["policy/grad_variance"])


def test_the_other_gradient_is_the_one_that_it_would_compute_itself():
    def build(algorithm, **settings):
        return on_text(algorithm, kl=KLControl(0.0), **settings)

    values = {"baseline": ValueBaseline()}
    (alone,) = fit(*build(REINFORCE, **values), GradientDiagnostics(), max_epochs=1).rows[1:]
    callback = GradientDiagnostics(
        against=lambda task, backbone: REINFORCE(task, backbone, kl=KLControl(0.0), **values)
    )
    (beside,) = fit(*build(A2C), callback, max_epochs=1).rows[1:]
    assert beside["policy/grad_variance_against"] == pytest.approx(alone["policy/grad_variance"], rel=1e-6)
    assert beside["policy/grad_variance"] != pytest.approx(alone["policy/grad_variance"], rel=1e-3)
    assert -1 <= beside["policy/grad_cosine_against"] <= 1


def test_comparing_with_another_changes_nothing():
    (plain, data), (watched, same_data) = on_text(RLOO), on_text(RLOO)
    against = GradientDiagnostics(every=1, against=lambda task, backbone: REINFORCE(task, backbone))
    expected = fit(plain, data, max_epochs=2).untimed()
    found = fit(watched, same_data, against, max_epochs=2).untimed()
    own = (*GRADIENT, *AGAINST)
    assert [{name: x for name, x in row.items() if name not in own} for row in found] == expected
    assert same(snapshot(plain), snapshot(watched))


@pytest.mark.parametrize(
    ("against", "message"),
    [
        (lambda task, backbone: A2C(task, backbone), "A2C, which needs a critic, and RLOO trains none"),
        (lambda task, backbone: SFT(task, backbone), "SFT; expected a policy optimizer"),
    ],
)
def test_another_that_cannot_learn_from_these_rollouts_is_refused(against, message):
    with pytest.raises(UserError, match=message):
        fit(*on_text(RLOO), GradientDiagnostics(against=against), max_epochs=1)


def test_another_that_compares_groups_is_refused_without_them():
    task = Letters()
    against = GradientDiagnostics(against=lambda task, backbone: RLOO(task, backbone))
    with pytest.raises(UserError, match=r"samples_per_prompt of at least 2"):
        fit(REINFORCE(task, tiny(), baseline=NoBaseline()), rollouts(task), against, max_epochs=1)


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [GradientDiagnostics(), KLDiagnostics()])
def test_a_run_without_rollouts_is_refused(callback):
    task = Letters()
    with pytest.raises(UserError, match="policy optimizer, and SFT is none"):
        quiet_trainer(callback, max_steps=1).fit(SFT(task, tiny()), DemonstrationDataModule(task, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GradientDiagnostics(every=0), "GradientDiagnostics.every"),
        (lambda: GradientDiagnostics(parts=1), "GradientDiagnostics.parts"),
        (lambda: KLDiagnostics(every=0), "KLDiagnostics.every"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_figures_know_what_is_measured():
    module, data = on_text(REINFORCE)
    described = []

    class Reads(Rows):
        def on_train_start(self, trainer, module):
            described.extend(metric.name for metric in module.describe().metrics)

    fit(module, data, GradientDiagnostics(), KLDiagnostics(), Reads(), max_epochs=1)
    assert {*GRADIENT, *KL} <= {*described}
