"""How far weights are from the start: by hand, by all entries, and over a resume."""

import math

import pytest
import torch
from torch import nn
from training_helpers import Letters, fit, ppo, rollouts, snapshot, tiny

from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.run_files import RunFiles
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.training.weight_change import MOST, WeightChange


def network(*shapes):
    return nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])


def relative(before, after):
    """‖θ − θ₀‖ / ‖θ₀‖ over all entries."""
    change = math.sqrt(sum(((a - b).double() ** 2).sum() for a, b in zip(after, before, strict=True)))
    return change / math.sqrt(sum((b.double() ** 2).sum() for b in before))


def test_change_of_small_tensors_by_hand():
    parameters = nn.ParameterList([nn.Parameter(torch.tensor([3.0, 0.0])), nn.Parameter(torch.tensor([[4.0]]))])
    change = WeightChange(parameters)
    assert change.value() == 0
    with torch.no_grad():
        parameters[0][1] += 0.3
        parameters[1][0, 0] -= 0.4
    assert change.value() == pytest.approx(0.5 / 5, rel=1e-6)  # √(0.3² + 0.4²) / √(3² + 4²)


def test_what_does_not_train_does_not_count():
    parameters = network((3,), (4,))
    parameters[0].requires_grad_(False)
    change, before = WeightChange(parameters), parameters[1].detach().clone()
    with torch.no_grad():
        parameters[0].mul_(100)
        parameters[1].add_(0.1)
    assert change.value() == pytest.approx(relative([before], [parameters[1].detach()]), rel=1e-6)


def test_weights_that_start_at_zero_report_their_norm():
    parameter = nn.Parameter(torch.zeros(2))
    change = WeightChange(nn.ParameterList([parameter]))
    assert change.value() == 0
    with torch.no_grad():
        parameter.copy_(torch.tensor([3.0, 4.0]))
    assert change.value() == pytest.approx(5)


def test_large_tensors_are_estimated():
    parameters = network((300, 400), (MOST + 1,), (7,))
    change, before = WeightChange(parameters), [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn_like(parameter))
    # The squared norm of the large tensor is estimated from 4,096 normal entries, so with an error of √(2 / 4096).
    found, right = change.value(), relative(before, [p.detach() for p in parameters])
    assert found == pytest.approx(right, rel=4 * math.sqrt(2 / MOST))
    assert len(change.state()) == 2 * MOST + 7


@pytest.mark.parametrize("size", [MOST + 1, 10 * MOST + 17])
def test_each_stretch_of_a_large_tensor_has_one_entry(size):
    numbers = nn.Parameter(torch.arange(size, dtype=torch.float64))
    places = WeightChange(nn.ParameterList([numbers])).state()
    stretch = torch.arange(MOST) * size / MOST
    assert ((places > stretch - 1) & (places <= stretch + size / MOST)).all()


def test_a_single_bit_is_seen_in_double_precision():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
    change = WeightChange(nn.ParameterList([parameter]))
    with torch.no_grad():
        parameter[1] += 2.0**-52
    assert change.value() == pytest.approx(2.0**-52 / math.sqrt(3))


def changes(rows):
    return [{name: value for name, value in row.items() if name.endswith("/weight_change")} for row in rows.rows[1:]]


def test_rows_of_a_run_have_the_change_of_each_network():
    task = Letters()
    module = ppo(task)
    module.configure_model()
    before = {name: [p.detach().clone() for p in n.parameters()] for name, n in module.networks().items()}
    row = changes(fit(module, rollouts(task), max_epochs=2))[-1]
    networks = {"policy": module.policy, "value": module.critic.network}
    assert row == {
        f"{name}/weight_change": pytest.approx(relative(before[name], [p.detach() for p in one.parameters()]), rel=1e-6)
        for name, one in networks.items()
    }
    described = {metric.name: metric for metric in module.describe().metrics}
    assert [described[name].shown for name in row] == [True, False]


def test_a_policy_that_adamw_never_touches_is_looked_at_too():
    task = Letters()
    module = NPG(task, tiny(), minibatch_size=8, critic_epochs=1)
    (row,) = changes(fit(module, rollouts(task), max_epochs=1))
    assert row["policy/weight_change"] > 0


def test_a_policy_that_waits_for_its_critic_reports_nothing():
    task = Letters()
    module = ppo(task)
    module.critic.warmup = 1
    first, second = changes(fit(module, rollouts(task), max_epochs=2))
    assert list(first) == ["value/weight_change"]
    assert second["policy/weight_change"] > 0


def supervised(folder, *callbacks, steps, **how):
    task = Letters()
    module = SFT(task, tiny(), Optimization(lr=1e-2), log_every=1)
    data = DemonstrationDataModule(task, batch_size=4)
    rows = fit(
        module, data, *callbacks, max_steps=steps, max_epochs=-1, limit_val_batches=0, default_root_dir=folder, **how
    )
    return module, [row["policy/weight_change"] for row in rows.rows]


def test_a_resumed_run_counts_from_its_start(tmp_path):
    whole, expected = supervised(tmp_path / "whole", steps=5)
    supervised(tmp_path / "half", Checkpoints(every=3), steps=3)
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    resumed, found = supervised(tmp_path / "half", steps=5, ckpt_path=last)
    assert found == expected[3:]
    assert all(map(torch.equal, snapshot(resumed).values(), snapshot(whole).values()))


def test_a_run_that_begins_at_a_checkpoint_of_another_counts_from_there(tmp_path):
    supervised(tmp_path / "first", Checkpoints(every=3), steps=3)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["state_dict"]
    module, found = supervised(tmp_path / "second", RunFiles(None, {}, begins=True), steps=4, ckpt_path=last)
    after = {name: parameter.detach() for name, parameter in module.named_parameters()}  # a tied one once
    assert found == [pytest.approx(relative([before[name] for name in after], after.values()), rel=1e-6)]


def test_a_checkpoint_that_does_not_know_its_start_gives_no_numbers(tmp_path):
    supervised(tmp_path, Checkpoints(every=3), steps=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["weights_at_start"]
    torch.save(checkpoint, last)
    with pytest.raises(KeyError, match="weight_change"):
        supervised(tmp_path, steps=4, ckpt_path=last)
