"""Functions of the user's own as rewards: what they may return, and the line for everything that goes wrong."""

import sys

import numpy as np
import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.source import judged

PROMPTS = ["first question", [{"role": "user", "content": "second"}], "third question"]
RESPONSES = ["a b", "a", "a b c"]
MODULE = """
import numpy, torch

class Judge:
    @staticmethod
    def says(prompts, responses):
        return [7.0] * len(responses)

NUMBER = 3

def length(prompts, responses):
    return [len(response.split()) for response in responses]

def as_array(prompts, responses):
    return numpy.array(length(prompts, responses), dtype=numpy.float32) / 2

def as_tensor(prompts, responses):
    return torch.tensor(length(prompts, responses), dtype=torch.bfloat16)

def of_prompts(prompts, responses):
    return [float(isinstance(prompt, list)) for prompt in prompts]

def two(prompts, responses):
    return {"short": [-n for n in length(prompts, responses)], "ends_in_c": [r.endswith("c") for r in responses]}

def raises(prompts, responses):
    for prompt, response in zip(prompts, responses):
        if response == "a":
            raise ArithmeticError("no price\\nfor it")
    return length(prompts, responses)

def raises_for_all(prompts, responses):
    raise RuntimeError

def needs_three(prompts, responses):
    assert len(responses) != 3, "three"
    return length(prompts, responses)

def too_few(prompts, responses):
    return [1.0, 2.0]

def one_number(prompts, responses):
    return 1.0

def nothing(prompts, responses):
    return None

def unordered(prompts, responses):
    return {1.0, 2.0, 3.0}

def column(prompts, responses):
    return torch.zeros(len(responses), 1)

def with_none(prompts, responses):
    return [1.0, None, 2.0]

def with_nan(prompts, responses):
    return [1.0, 2.0, float("nan")]

def nan_among_two(prompts, responses):
    return {"short": [0.0] * 3, "ends_in_c": [0.0, float("inf"), 0.0]}

def short_column(prompts, responses):
    return {"short": [0.0] * 3, "ends_in_c": [0.0]}
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    """A package in the working directory, which an installed command would not look through."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rewards.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "ends.py").write_text("raise SystemExit('usage: ends')\n")
    (tmp_path / "needs.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in ("own", "own.rewards", "broken", "ends", "needs"):
        sys.modules.pop(name, None)


def judge(name, weights=None):
    return judged(FunctionReward(f"own.rewards:{name}", weights), PROMPTS, RESPONSES)


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("length", [2.0, 1.0, 3.0]),
        ("as_array", [1.0, 0.5, 1.5]),
        ("as_tensor", [2.0, 1.0, 3.0]),
        ("of_prompts", [0.0, 1.0, 0.0]),
        ("Judge.says", [7.0, 7.0, 7.0]),
    ],
)
def test_function_gives_scores_as_list_array_or_tensor(name, expected):
    judgement = judge(name)
    assert judgement.scores.tolist() == expected
    assert judgement.scores.dtype == torch.float32
    assert judgement.objectives == {}


def test_path_may_be_written_with_a_dot():
    assert FunctionReward("own.rewards.length").score(PROMPTS, RESPONSES).tolist() == [2.0, 1.0, 3.0]


def test_mapping_gives_objectives():
    judgement = judge("two", {"ends_in_c": 10.0, "short": 0.5})
    assert {name: values.tolist() for name, values in judgement.objectives.items()} == {
        "ends_in_c": [0.0, 0.0, 1.0],
        "short": [-2.0, -1.0, -3.0],
    }
    assert judgement.scores.tolist() == [-1.0, -0.5, 8.5]  # 10 · ends_in_c + 0.5 · short
    assert list(judgement.objectives) == ["ends_in_c", "short"]


def test_function_cannot_change_what_others_read():
    def forgets(prompts, responses):
        scores = [0.0] * len(responses)
        prompts.clear()
        responses.clear()
        return scores

    source = FunctionReward("own.rewards.length")
    source.function = forgets
    prompts, responses = list(PROMPTS), list(RESPONSES)
    judged(source, prompts, responses)
    assert (prompts, responses) == (PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("length", "is 'length'; expected package.module:name or package.module.name"),
        ("own.rewards:", "expected package.module:name"),
        (":length", "expected package.module:name"),
        ("absent.module:f", "importing absent.module raised ModuleNotFoundError: No module named 'absent'"),
        ("broken:f", "importing broken raised SyntaxError: "),
        ("ends:f", "importing ends raised SystemExit: usage: ends"),
        ("needs:f", "importing needs raised ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("own.rewards:lenght", "own.rewards has no lenght"),
        ("own.rewards:NUMBER", "which is a int; expected a function (prompts, responses) -> scores"),
        ("own.rewards:Judge", "which is a class; expected a function"),
    ],
)
def test_path_that_names_no_function_is_one_line(path, line):
    found = refused(FunctionReward, path)
    assert line in found
    assert found.startswith(f"reward.init_args.function is {path!r}")


def test_function_that_raises_names_reason_place_and_record():
    number = MODULE.splitlines().index('            raise ArithmeticError("no price\\nfor it")') + 1
    assert refused(judge, "raises") == (
        f"FunctionReward own.rewards:raises raised ArithmeticError: no price for it (rewards.py, line {number}) "
        f"for the response 'a' to the prompt {PROMPTS[1]!r}"
    )


@pytest.mark.parametrize(
    ("name", "line"), [("raises_for_all", "raised RuntimeError ("), ("needs_three", "raised AssertionError: three (")]
)
def test_function_that_raises_whatever_the_record_names_the_first(name, line):
    found = refused(judge, name)
    assert line in found
    assert "for the response 'a b' to the prompt 'first question'" in found


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("too_few", "returned 2 scores for 3 responses; expected one number for each (first prompt"),
        ("one_number", "returned a float for 3 responses"),
        ("nothing", "returned a NoneType for 3 responses"),
        ("unordered", "returned a set for 3 responses"),
        ("column", "returned [0.0] for the response 'a b' to the prompt 'first question'; expected a number"),
        ("with_none", f"returned None for the response 'a' to the prompt {PROMPTS[1]!r}; expected a number"),
        ("with_nan", "returned nan for the response 'a b c' to the prompt 'third question'; expected a finite number"),
        ("two", "returned short, ends_in_c; expected one score only: reward.init_args.weights names no objectives"),
    ],
)
def test_anything_but_one_number_for_each_response_is_one_line(name, line):
    found = refused(judge, name)
    assert line in found
    assert f"FunctionReward own.rewards:{name}" in found
    assert "'first question'" in found or "to the prompt" in found


@pytest.mark.parametrize(
    ("name", "weights", "line"),
    [
        ("two", {"short": 1.0}, "returned short, ends_in_c; expected short (first prompt"),
        ("two", {"short": 1.0, "ends_in_c": 1.0, "polite": 1.0}, "expected short, ends_in_c, polite"),
        ("length", {"short": 1.0}, "returned a list; expected a mapping with numbers for short, which"),
        ("nan_among_two", {"short": 1.0, "ends_in_c": 1.0}, "returned inf as ends_in_c for the response 'a' to the"),
        ("short_column", {"short": 1.0, "ends_in_c": 1.0}, "returned 1 scores for 3 responses"),
        ("two", {"short": float("nan")}, "reward.init_args.weights.short must be a finite number, got nan"),
    ],
)
def test_objectives_that_do_not_fit_are_one_line(name, weights, line):
    assert line in refused(judge, name, weights)


def test_numbers_of_every_kind_have_the_same_type_on_every_rank():
    source = FunctionReward("own.rewards.length")
    for kind in (int, float, np.float64, torch.tensor):
        source.function = lambda prompts, responses, kind=kind: [kind(1) for _ in responses]
        assert source.score(PROMPTS, RESPONSES).dtype == torch.float32
