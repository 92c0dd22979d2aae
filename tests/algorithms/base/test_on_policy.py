"""The iteration that all policy optimizers share: its order, the end of an update, and whose checkpoints it accepts."""

import pytest
from group_helpers import group_rollouts
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from training_helpers import AtHook, Letters, fit, ppo, tiny

from rlhf_lightning.algorithms import all_algorithms
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl, ThresholdKLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization

EVERY = [algorithm for algorithm in all_algorithms() if issubclass(algorithm, OnPolicy)]


def build(algorithm, **settings):
    return algorithm(Letters(), tiny(), **{"eval_every": 1000, "optimization": Optimization(lr=3e-2), **settings})


class Calls(Callback):
    """Notes what an iteration calls, in order, with the first argument and the result of each call."""

    def __init__(self):
        self.calls = []

    def setup(self, trainer, module, stage):
        for name in ("collect", "prepare", "update", "publish"):
            self.watch(module, name)
        self.watch(module.reference.kl, "update", "control")
        self.watch(trainer.datamodule, "finish")

    def watch(self, owner, name, label=None):
        call = getattr(owner, name)

        def noted(*arguments):
            self.calls.append([label or name, *arguments[:1]])
            entry, result = self.calls[-1], call(*arguments)
            entry.append(result)
            return result

        setattr(owner, name, noted)


@pytest.mark.parametrize("algorithm", EVERY)
def test_an_iteration_passes_each_result_on_to_the_next_step(algorithm):
    calls = Calls()
    fit(build(algorithm), group_rollouts(Letters()), calls, max_epochs=2)
    assert calls.calls.pop(0)[0] == "publish"  # the evaluation of the starting point
    order = ["collect", "prepare", "update", "control", "finish", "publish"]
    assert [name for name, *_ in calls.calls] == 2 * order
    for number in (0, 1):
        (_, scored), prepare, update, control, finish, publish = calls.calls[6 * number : 6 * number + 6]
        _, given, prepared = prepare
        assert given is scored
        assert update[1] is prepared
        assert control[1] == prepared.kl
        assert finish[1] is scored
        row = publish[1]
        assert row["iteration"] == number + 1
        assert prepared.metrics.items() | update[2].items() <= row.items()


def test_the_controller_waits_while_only_the_critic_learns():
    calls = Calls()
    fit(build(PPO, critic=CriticOptions(warmup=2)), group_rollouts(Letters()), calls, max_epochs=3)
    assert [name for name, *_ in calls.calls].count("control") == 1


@pytest.mark.parametrize("algorithm", [PPO, CPI, RLOO, GRPO, RAFT, ReinforcePlusPlus])
def test_an_update_ends_where_the_policy_has_gone_too_far(algorithm):
    def steps(**settings):
        taken = []
        hook = AtHook("on_before_optimizer_step", lambda trainer, module: taken.append(1))
        module = build(algorithm, inner_epochs=6, minibatch_size=2, kl=KLControl(0.0), **settings)
        row = fit(module, group_rollouts(Letters()), hook, max_epochs=1).rows[-1]
        assert row["policy/steps"] == len(taken)
        return len(taken), row["policy/kl_old"]

    epoch = 1 if algorithm is RAFT else 4  # steps; RAFT keeps two responses, and looks between epochs alone
    free, _ = steps(stop_kl=1e9)
    assert free == 6 * epoch
    few, _ = steps(stop_kl=0.005)
    assert 1 <= few < free
    with pytest.raises(UserError, match=r"model\.init_args\.stop_kl must be above 0"):
        build(algorithm, stop_kl=0.0)


def test_a_limit_on_the_kl_needs_a_loss_that_reports_it():
    class Silent(RLOO):
        def loss(self, part, minibatch):
            loss = super().loss(part, minibatch)
            del loss.sums["policy/kl_old"]
            return loss

    fit(build(Silent), group_rollouts(Letters()), max_epochs=1)
    with pytest.raises(UserError, match=r"which Silent\.loss does not report; expected stop_kl null"):
        fit(build(Silent, stop_kl=1.0), group_rollouts(Letters()), max_epochs=1)


def test_a_coefficient_is_used_as_reported_and_adapts_afterwards():
    module = ppo(Letters(), kl=ThresholdKLControl(0.1, target=100.0))
    rows = fit(module, group_rollouts(Letters()), max_epochs=3).rows[1:]
    assert [row["kl_control/coef"] for row in rows] == pytest.approx([0.1, 0.05, 0.025])
    assert module.reference.kl.coef == pytest.approx(0.0125)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (lambda: build(TRPO, minibatch_size=8), "the checkpoint is not one of TRPO: PPO wrote it"),
        (lambda: build(RLOO), "the checkpoint is not one of RLOO: PPO wrote it"),
        (
            lambda: ppo(Letters(), kl=ThresholdKLControl(0.1)),
            "the checkpoint was written with model.init_args.kl KLControl, and this run has ThresholdKLControl",
        ),
    ],
    ids=["TRPO", "RLOO", "controller"],
)
def test_the_checkpoint_of_another_run_is_refused_in_one_line(tmp_path, other, line):
    keep = ModelCheckpoint(tmp_path, "one", save_on_train_epoch_end=True)
    fit(ppo(Letters()), group_rollouts(Letters()), keep, max_epochs=1)
    with pytest.raises(UserError, match=line) as error:
        fit(other(), group_rollouts(Letters()), max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert "\n" not in str(error.value)
