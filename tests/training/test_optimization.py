"""Optimizer groups, schedules and arguments."""

import pytest
import torch
from torch import nn

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
