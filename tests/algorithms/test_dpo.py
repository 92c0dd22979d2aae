"""DPO: its losses, their gradients, what it reports of pairs, and that it learns from them."""

import copy
import itertools
import math

import pytest
import torch
from preference_helpers import build, log_ratios, pairs
from training_helpers import AtHook, Letters, fit

from rlhf_lightning.__main__ import main
from rlhf_lightning.algorithms.dpo import DPO, IPOLoss, SigmoidLoss
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.tabular import TabularBackbone
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.tree import PROMPT, RESPONSES
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair


def softplus(value):
    """−log σ(−x)."""
    return torch.log1p(value.exp())


BY_HAND = {
    SigmoidLoss(0.3): lambda h: softplus(-0.3 * h),
    SigmoidLoss(0.3, label_smoothing=0.2): lambda h: 0.8 * softplus(-0.3 * h) + 0.2 * softplus(0.3 * h),
    IPOLoss(0.5): lambda h: (h - 1) ** 2,
    IPOLoss(0.1): lambda h: (h - 5) ** 2,
}


@pytest.mark.parametrize("loss", BY_HAND, ids=str)
def test_dpo_gradient_and_row_are_those_of_single_responses(loss):
    task, expected = Letters(), []
    start = {}

    def keep(trainer, module):
        start["model"] = copy.deepcopy(module.policy.model)

    def compare(trainer, module):
        examples = trainer.datamodule.train_batch(trainer.global_step)
        assert len({len(pair.chosen.split()) for pair in examples}) > 1, "there is padding"
        gradients = [p.grad.clone() for p in module.policy.parameters()]
        with torch.enable_grad():
            ratios = [log_ratios(module.policy, start["model"], pair) for pair in examples]
            losses = [BY_HAND[loss](chosen - rejected) for chosen, rejected in ratios]
            wanted = torch.autograd.grad(sum(losses) / len(examples), list(module.policy.parameters()))
        for gradient, right in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, right, rtol=1e-7, atol=1e-10)
        rewards = [[loss.beta * ratio.item() for ratio in two] for two in ratios]
        margins = [chosen - rejected for chosen, rejected in rewards]
        sums = {
            "dpo/loss": sum(one.item() for one in losses),
            "dpo/margin": sum(margins),
            "dpo/accuracy": sum(0.5 if abs(m) < 1e-9 else float(m > 0) for m in margins),
            "dpo/chosen_reward": sum(two[0] for two in rewards),
            "dpo/rejected_reward": sum(two[1] for two in rewards),
        }
        expected.append({name: value / len(examples) for name, value in sums.items()})

    module = build(DPO, task, loss=loss, optimization=Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3))
    hooks = (AtHook("on_train_start", keep), AtHook("on_before_optimizer_step", compare))
    settings = {"precision": "64-true", "limit_val_batches": 0}
    rows = fit(module, pairs(task), *hooks, max_steps=3, **settings).rows
    assert len(expected) == 3
    for row, by_hand in zip(rows, expected, strict=True):
        assert {name: row[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-9)
    assert rows[0]["dpo/accuracy"] == 0.5  # at the start every margin is 0: all are ties
    assert rows[2]["dpo/margin"] > 0.01


def test_heldout_numbers_are_means_over_all_heldout_pairs():
    task, start = Letters(heldout=7), {}  # in batches of 5 and 2
    keep = AtHook("on_train_start", lambda trainer, module: start.update(model=copy.deepcopy(module.policy.model)))
    module = build(DPO, task, loss=SigmoidLoss(0.5), optimization=Optimization(1e-2, microbatch_size=2))
    row = fit(module, pairs(task), keep, max_steps=2, num_sanity_val_steps=0).rows[-1]
    with torch.no_grad():
        ratios = [log_ratios(module.policy, start["model"], pair) for pair in task.preferences("heldout")]
    differences = [(chosen - rejected).item() for chosen, rejected in ratios]
    assert row["step"] == 2
    assert row["eval/loss"] == pytest.approx(sum(math.log1p(math.exp(-0.5 * h)) for h in differences) / 7, rel=1e-4)
    assert row["eval/accuracy"] == sum(h > 0 for h in differences) / 7
    assert row["eval/margin"] == pytest.approx(0.5 * sum(differences) / 7, rel=1e-4)
    assert row["eval/chosen_reward"] == pytest.approx(0.5 * sum(c.item() for c, _ in ratios) / 7, rel=1e-3)
    assert row["eval/rejected_reward"] == pytest.approx(0.5 * sum(r.item() for _, r in ratios) / 7, rel=1e-3)


def test_losses_of_pairs_by_hand():
    chosen, rejected = torch.tensor([3.0, -1.0, 1.0]), torch.tensor([1.0, -1.0, 4.0])  # h = 2, 0, −3
    plain = SigmoidLoss(0.5).per_pair(chosen, rejected)
    # log(1 + e⁻¹), log 2, log(1 + e^1.5)
    assert plain.tolist() == pytest.approx([0.313262, 0.693147, 1.701413], abs=1e-6)
    smoothed = SigmoidLoss(0.5, label_smoothing=0.1).per_pair(chosen, rejected)
    # 0.9 · 0.313262 + 0.1 · 1.313262, log 2, 0.9 · 1.701413 + 0.1 · 0.201413
    assert smoothed.tolist() == pytest.approx([0.413262, 0.693147, 1.551413], abs=1e-6)
    squared = IPOLoss(0.25).per_pair(chosen, rejected)
    # (2 − 2)², (0 − 2)², (−3 − 2)²
    assert squared.tolist() == pytest.approx([0, 4, 25])


def test_optimum_of_the_loss_is_the_tilted_reference():
    """On all ordered pairs, weighted by the Bradley–Terry model of the rewards r: π ∝ π_ref e^{r/β}."""
    task = Bandit()
    module = build(DPO, task, loss=SigmoidLoss(0.5), backbone=TabularBackbone())
    module.configure_model()
    rewards = dict(zip(RESPONSES, task.scores().tolist(), strict=True))
    ordered = [PreferencePair(PROMPT, *two) for two in itertools.permutations(rewards, 2)]
    odds = [1 / (1 + math.exp(rewards[pair.rejected] - rewards[pair.chosen])) for pair in ordered]
    weights = torch.tensor(odds, dtype=torch.float64)
    module.double()
    encoded = module.encode(ordered)
    optimizer = torch.optim.LBFGS(module.policy.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (weights * module.loss.per_pair(*module.log_ratios(encoded).chunk(2))).sum()
        value.backward()
        return value

    optimizer.step(loss)
    alone = module.encode([PreferencePair(PROMPT, response, response) for response in rewards])
    with torch.no_grad():
        reached, start = (module.logprobs(p, alone).sum(-1)[:15] for p in (module.policy, module.reference.policy))
    wanted = (start + torch.tensor(list(rewards.values()), dtype=torch.float64) / 0.5).softmax(-1)
    assert start.exp().sum().item() == pytest.approx(1)
    assert torch.allclose(reached.exp(), wanted, atol=1e-5)
    assert (reached.exp() - start.exp()).abs().max() > 0.05


def test_dpo_learns():
    task = Letters(pairs=40)
    module = build(DPO, task, loss=SigmoidLoss(0.1))
    rows = fit(module, pairs(task, 8), max_steps=30, num_sanity_val_steps=0).rows
    assert rows[0]["step"] == 0
    assert rows[-1]["eval/accuracy"] == 1
    assert rows[-1]["eval/gold"] > rows[0]["eval/gold"] + 0.2
    assert rows[-1]["eval/kl_ref_sequence"] > rows[0]["eval/kl_ref_sequence"] == 0


def test_ipo_stops_at_its_margin():
    """The sigmoid loss drives pairs that are always labelled alike ever further apart; IPO wants h = 1 / (2β)."""
    task = Letters(pairs=8)
    reached = {}
    for loss in (SigmoidLoss(0.5), IPOLoss(0.5)):
        module = build(DPO, task, loss=loss, optimization=Optimization(1e-2, "linear"))
        rows = fit(module, pairs(task, 8), max_steps=60, limit_val_batches=0).rows
        reached[type(loss)] = rows[-1]["dpo/margin"]
    assert reached[IPOLoss] == pytest.approx(0.5, abs=0.1)  # β h = 0.5 · 1
    assert reached[SigmoidLoss] > 2


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: SigmoidLoss(0.0), r"loss\.beta must be above 0, got 0\.0"),
        (lambda: IPOLoss(-1.0), r"loss\.beta must be above 0, got -1\.0"),
        (lambda: SigmoidLoss(math.nan), r"loss\.beta must be above 0, got nan"),
        (lambda: IPOLoss(math.inf), r"loss\.beta must be above 0, got inf"),
        (lambda: SigmoidLoss(label_smoothing=0.5), r"loss\.label_smoothing must be from 0 to below 0\.5, got 0\.5"),
        (lambda: SigmoidLoss(label_smoothing=-0.1), r"loss\.label_smoothing must be from 0 to below 0\.5, got -0\.1"),
        (lambda: SigmoidLoss(label_smoothing=math.nan), r"loss\.label_smoothing .* got nan"),
    ],
)
def test_bad_loss_is_refused(make, line):
    with pytest.raises(UserError, match=line) as refused:
        make()
    assert "\n" not in str(refused.value)


class NoText(Task):
    """An environment."""

    provides = frozenset({"observations"})


def test_task_without_prompts_is_refused():
    with pytest.raises(UserError, match=r"DPO needs prompts, which task NoText does not provide"):
        build(DPO, NoText())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model.init_args.loss.init_args.beta", "0"], "loss.beta must be above 0, got 0.0"),
        (["--model.init_args.loss", "HingeLoss"], "HingeLoss"),
        (
            ["--model.init_args.loss", "IPOLoss", "--model.init_args.loss.init_args.label_smoothing", "0.1"],
            "label_smoo",
        ),
    ],
    ids=["beta", "class", "argument"],
)
def test_loss_is_chosen_by_class_on_the_command_line(options, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    configs = ["--config", "configs/tasks/assistant.yaml", "--config", "configs/algorithms/dpo.yaml"]
    given = ["--data.init_args.pairs", "pairs.jsonl", *options]
    assert main(["fit", *configs, *given]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
