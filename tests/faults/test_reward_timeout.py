"""A reward function that hangs ends the run in one line."""

import threading
import time

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.source import judged

PROMPTS, RESPONSES = ["first", "second"], ["a", "b c"]
LONG = 60.0
released = threading.Event()


def hangs(prompts, responses):
    released.wait(LONG)
    return [0.0 for _ in responses]


def raises(prompts, responses):
    if "b c" in responses:
        raise ArithmeticError("no price")
    return [0.0 for _ in responses]


def raises_for_all_and_hangs_on_one(prompts, responses):
    if len(responses) == 1:
        released.wait(LONG)
    raise ArithmeticError("no price")


def counts(prompts, responses):
    # in a thread of its own it is as much outside of autograd as in the thread that trains
    assert not torch.is_grad_enabled()
    return torch.tensor([len(response.split()) for response in responses])


@pytest.fixture(autouse=True)
def _nothing_left_running():
    released.clear()
    yield
    released.set()


def source(function, timeout):
    return FunctionReward(f"{__name__}:{function.__name__}", timeout=timeout)


def refused(function, timeout):
    with pytest.raises(UserError) as caught:
        judged(source(function, timeout), PROMPTS, RESPONSES)
    return str(caught.value)


def test_function_that_hangs_is_one_line_that_names_it_and_the_limit():
    began = time.monotonic()
    assert refused(hangs, 0.05) == (
        f"FunctionReward {__name__}:hangs took more than 0.05 seconds (reward.init_args.timeout) for 2 responses "
        "(first prompt of the batch: 'first')"
    )
    assert time.monotonic() - began < LONG / 2
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert all(thread.daemon for thread in left)  # none keeps the process from ending


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_timeout_changes_no_score(timeout):
    assert judged(source(counts, timeout), PROMPTS, RESPONSES).scores.tolist() == [1.0, 2.0]


def test_function_that_raises_within_the_limit_names_the_record():
    found = refused(raises, 30.0)
    assert "raised ArithmeticError: no price (test_reward_timeout.py, line " in found
    assert found.endswith("for the response 'b c' to the prompt 'second'")


def test_search_for_the_record_ends_when_the_function_hangs():
    assert "raised ArithmeticError" in refused(raises_for_all_and_hangs_on_one, 0.05)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_timeout_out_of_range_is_refused(timeout):
    with pytest.raises(UserError, match=r"reward\.init_args\.timeout must be a number of seconds above 0, got"):
        source(counts, timeout)
