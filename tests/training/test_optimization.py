"""Optimizer groups, schedules and arguments."""

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization


def rates(schedule, warmup, length):
    built = Optimization(0.1, schedule, warmup).build({"policy": nn.Linear(1, 1)}, length=length)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]
    found = []
    for _ in range(length):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant_with_warmup", 0.0, [0.1, 0.1, 0.1, 0.1, 0.1]),
        ("constant_with_warmup", 0.4, [0, 0.05, 0.1, 0.1, 0.1]),
        ("linear", 0.0, [0.1, 0.08, 0.06, 0.04, 0.02]),
        ("linear", 0.2, [0, 0.1, 0.075, 0.05, 0.025]),
        # ½ (1 + cos(πt/4)) for t = 0 … 3
        ("cosine", 0.2, [0, 0.1, 0.0853553, 0.05, 0.0146447]),
    ],
)
def test_schedules_by_hand(schedule, warmup, expected):
    assert rates(schedule, warmup, 5) == pytest.approx(expected, abs=1e-7)


def test_each_network_is_a_group_with_its_own_rate():
    networks = {"policy": nn.Linear(2, 2), "value": nn.Linear(2, 1)}
    networks["policy"].bias.requires_grad_(False)
    optimizer = Optimization(0.1, "linear", weight_decay=0.3, eps=1e-5, betas=(0.8, 0.9)).build(
        networks, length=2, lrs={"value": 0.5}
    )["optimizer"]
    policy, value = optimizer.param_groups
    assert (policy["name"], value["name"]) == ("policy", "value")
    assert (policy["lr"], value["lr"]) == (0.1, 0.5)
    assert len(policy["params"]) == 1
    for group in (policy, value):
        assert (group["weight_decay"], group["eps"], group["betas"]) == (0.3, 1e-5, (0.8, 0.9))


def test_state_of_optimizer_and_schedule_loads_without_unpickling(tmp_path):
    network = nn.Linear(1, 1)
    built = Optimization(0.1, "cosine", 0.5).build({"policy": network}, length=4)
    network(torch.ones(1, 1)).sum().backward()
    built["optimizer"].step()
    built["lr_scheduler"].step()
    torch.save({name: part.state_dict() for name, part in built.items()}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["lr_scheduler"]["last_epoch"] == 1
    assert loaded["optimizer"]["param_groups"][0]["name"] == "policy"


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"schedule": "step"},
        {"warmup": 1.5},
        {"max_grad_norm": 0.0},
        {"weight_decay": -0.1},
        {"microbatch_size": 0},
    ],
)
def test_bad_values_are_named_in_one_line(bad):
    with pytest.raises(UserError) as error:
        Optimization(**bad)
    assert f"optimization.{next(iter(bad))}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({}, False), ({"warmup": 0.1}, True), ({"schedule": "linear"}, True), ({"schedule": "cosine"}, True)],
)
def test_only_a_schedule_that_changes_needs_the_length_of_the_run(settings, needed):
    assert Optimization(**settings).needs_length is needed


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("length", [1, 7, 20])
def test_schedules_are_those_of_transformers_to_the_bit(schedule, warmup, length):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    theirs = get_scheduler(
        schedule, optimizer, num_warmup_steps=round(warmup * length), num_training_steps=length
    ).lr_lambdas[0]
    for step in range(length + 3):
        assert Optimization(0.1, schedule, warmup).factor(step, length=length) == theirs(step)


def restored(old, new, steps, lengths):
    """An optimizer with these settings that takes over the state of another one after some steps."""
    networks = [{"policy": nn.Linear(1, 1)} for _ in range(2)]
    first, second = (one.build(n, length=m) for one, n, m in zip((old, new), networks, lengths, strict=True))
    for _ in range(steps):
        networks[0]["policy"](torch.ones(1, 1)).sum().backward()
        first["optimizer"].step()
        first["lr_scheduler"].step()
    second["optimizer"].load_state_dict(first["optimizer"].state_dict())
    second["lr_scheduler"].load_state_dict(first["lr_scheduler"].state_dict())
    return first, second


def test_settings_come_from_the_configuration_and_moments_from_the_checkpoint():
    old = Optimization(0.1, "linear", weight_decay=0.3, betas=(0.5, 0.6), eps=1e-3)
    new = Optimization(0.4, "linear", weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    first, second = restored(old, new, steps=3, lengths=(4, 4))
    (group,) = second["optimizer"].param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-6)
    assert group["lr"] == pytest.approx(0.4 * 1 / 4)  # the fourth of four steps
    moments = [list(one["optimizer"].state_dict()["state"][0].values()) for one in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    second["optimizer"].step()
    second["lr_scheduler"].step()
    assert group["lr"] == 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    # after 4 of 4 steps, made 8 long: 1 − 4/8, ½ (1 + cos(π/2)); the warm-up of 2 steps is over
    [("linear", 0.05), ("cosine", 0.05), ("constant_with_warmup", 0.1)],
)
def test_a_longer_run_goes_on_with_the_rate_of_the_longer_schedule(schedule, expected):
    _, longer = restored(Optimization(0.1, schedule), Optimization(0.1, schedule), steps=4, lengths=(4, 8))
    assert longer["optimizer"].param_groups[0]["lr"] == pytest.approx(expected)


def test_the_same_settings_go_on_to_the_bit():
    settings = Optimization(0.1, "cosine", 0.3, weight_decay=0.1)
    first, second = restored(settings, settings, steps=4, lengths=(9, 9))
    for _ in range(5):
        assert first["optimizer"].param_groups[0]["lr"] == second["optimizer"].param_groups[0]["lr"]
        assert first["lr_scheduler"].state_dict() == second["lr_scheduler"].state_dict()
        for built in (first, second):
            built["optimizer"].step()
            built["lr_scheduler"].step()
