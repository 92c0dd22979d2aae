"""Two nodes: two launchers on one machine, and one launcher of two processes, each beside a run of one process."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import torch

from rlhf_lightning.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("torch.distributed.run", "--master_addr", "127.0.0.1")
CONFIGS = [f"configs/{name}.yaml" for name in ("tasks/bandit", "algorithms/ppo", "hardware/ddp")]
TOLERANCE = 1e-9
TIMED = ("timing/", "rollout/tokens_per_second")


def fit(name: str, *more: str) -> list[str]:
    """Three iterations of PPO in float64, as words behind ``python -m``."""
    words = ["rlhf_lightning", "fit", *(word for path in CONFIGS for word in ("--config", path)), "--name", name]
    words += ["--trainer.accelerator", "cpu", "--trainer.precision", "64-true", "--trainer.max_epochs", "3"]
    words += ["--model.init_args.eval_every", "2", "--data.init_args.rollout_batch_size", "32"]
    return [*words, "--data.init_args.eval_prompts", "7", *more]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def surroundings(*folders: Path) -> dict[str, str]:
    """An environment in which modules of these folders are found."""
    paths = os.pathsep.join(map(str, (ROOT, *folders)))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def together(folder: Path, *commands: list[str]) -> list[str]:
    """Run modules side by side; what each prints. None outlives the others' failure."""
    environment = surroundings()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with ExitStack() as stack:
        started = []
        for words in commands:
            process = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=environment, **pipes)
            started.append(stack.enter_context(process))
        try:
            outputs = [process.communicate(timeout=300)[0] for process in started]
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    together(folder, fit("run", "--trainer.devices", "1", "--trainer.strategy", "auto"))
    return folder / "runs" / "run"


def on_two_nodes(folder: Path) -> list[str]:
    port = free_port()
    nodes = ("--nnodes", "2", "--nproc_per_node", "1", "--master_port", port)
    run = fit("run", "--trainer.num_nodes", "2", "--trainer.devices", "1")
    return together(folder, *([*LAUNCHER, *nodes, "--node_rank", rank, "-m", *run] for rank in ("0", "1")))


def under_torchrun(folder: Path) -> list[str]:
    return together(folder, [*LAUNCHER, "--nproc_per_node", "2", "--master_port", free_port(), "-m", *fit("run")])


def test_several_nodes_without_a_launcher_are_refused(tmp_path, capsys, monkeypatch):
    # each node would take itself for the first one, and write the run directory
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert main([*fit("run")[1:], "--trainer.num_nodes", "2"]) == 2
    error = capsys.readouterr().err
    assert error == "error: trainer.num_nodes is 2: start one process per device by torchrun or srun\n"
    assert not list(tmp_path.iterdir())


FAILING = """
import os

import torch

from rlhf_lightning.rewards.source import RewardSource


class Reward(RewardSource):
    def score(self, prompts, responses):
        if os.environ.get("LOCAL_RANK") == "1":
            raise ValueError("no connection to the judge")
        return torch.zeros(len(responses))
"""


@pytest.mark.slow
@pytest.mark.parametrize("launch", [on_two_nodes, under_torchrun])
def test_run_is_that_of_one_process(launch, whole, tmp_path):
    outputs = launch(tmp_path)
    assert "".join(outputs).count("run: done") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    found = tmp_path / "runs" / "run"
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in whole.iterdir())

    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (found, whole)]
    assert states[0].keys() == states[1].keys()
    assert max((states[0][name] - states[1][name]).abs().max() for name in states[0]) <= TOLERANCE
    rows, expected = (pd.read_csv(run / "metrics.csv") for run in (found, whole))
    untimed = [name for name in expected if not name.startswith(TIMED)]
    assert list(rows) == list(expected)
    assert expected["iteration"].tolist() == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(rows[untimed], expected[untimed], rtol=TOLERANCE, atol=TOLERANCE)
    assert (found / "samples.jsonl").read_text().count("\n") == (whole / "samples.jsonl").read_text().count("\n")


@pytest.mark.slow
def test_reward_that_fails_on_one_rank_ends_the_command_in_its_own_line(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    words = fit("run", "--data.init_args.reward", "failing.Reward")
    ended = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: reward source Reward raised ValueError: no connection to the judge")
    assert ended.stderr.count("\n") == 1
