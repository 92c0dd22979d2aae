"""What components read: named by them, digested, and noticed when it changes."""

import importlib
import sys

import pytest

from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.records.inputs import changed_inputs, inputs_of, read_inputs, write_inputs
from rlhf_lightning.rewards.composite import CompositeReward
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.text import TextTask

RECORD = '{"prompt": "say a", "response": "b"}\n'


class Reader(Constructed):
    def __init__(self, path, others=()):
        self.path = path

    def reads(self):
        return [self.path]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


def of_files(inputs, here):
    """Those in the working folder: the classes of this file are the user's own code, too."""
    return {one.path: one.name for one in inputs if (here / one.path).exists() and not one.path.startswith("/")}


def changed(here):
    return {one.path for one in changed_inputs(here)}


def test_inputs_are_named_by_components_wherever_they_stand(here):
    for name in ("a", "b", "c"):
        (here / name).write_text(name)
    tree = {"first": Reader("a", others=[Reader("b"), {"deep": Reader("c")}]), "hub": Reader("owner/model")}
    assert of_files(inputs_of(tree), here) == {
        "a": "first",
        "b": "first.init_args.others.0",
        "c": "first.init_args.others.1.deep",
    }


def test_a_changed_or_missing_file_is_named_and_an_unchanged_one_is_not(here):
    (here / "kept").write_text("1")
    (here / "edited").write_text("1")
    (here / "removed").write_text("1")
    (here / "folder").mkdir()
    (here / "folder" / "part").write_text("1")
    write_inputs(here, inputs_of({"data": Reader("kept", [Reader("edited"), Reader("removed"), Reader("folder")])}))
    assert changed(here) == set()
    (here / "edited").write_text("2")
    (here / "removed").unlink()
    (here / "folder" / "part").rename(here / "folder" / "another")
    assert changed(here) == {"edited", "removed", "folder"}


def test_a_dataset_folder_is_read_by_name_and_with_its_split(here):
    (here / "data").mkdir()
    (here / "data" / "train.jsonl").write_text(RECORD)
    for path in ("data", "data:train"):
        assert of_files(inputs_of({"task": TextTask(path)}), here) == {"data": "task"}


def test_the_code_of_a_function_and_what_it_imports_counts_without_comments(here):
    (here / "my_words.py").write_text("GOOD = 'yes'\n")
    (here / "my_reward.py").write_text(
        "import json\n\nfrom my_words import GOOD\n\n\ndef score(p, r):\n    return GOOD\n"
    )
    reward = CompositeReward({"mine": FunctionReward("my_reward:score")}, {"mine": 1.0})
    inputs = inputs_of({"data": reward})
    place = "data.init_args.parts.mine"
    assert of_files(inputs, here) == {"my_reward.py": place, "my_words.py": place}
    write_inputs(here, inputs)
    (here / "my_reward.py").write_text("import json\nfrom my_words import GOOD\ndef score(p, r): return GOOD  # said\n")
    assert changed(here) == set()
    (here / "my_words.py").write_text("GOOD = 'no'\n")
    assert changed(here) == {"my_words.py"}


def test_a_class_of_the_users_is_read_and_one_of_the_package_is_not(here):
    (here / "my_reader.py").write_text(
        "from rlhf_lightning.records.constructed import Constructed\n\n\nclass Mine(Constructed):\n    pass\n"
    )
    mine = importlib.import_module("my_reader").Mine()
    assert of_files(inputs_of({"callback": mine}), here) == {"my_reader.py": "callback"}
    assert inputs_of({"task": Bandit()}) == []


def test_a_run_that_kept_no_inputs_has_none(here):
    assert read_inputs(here) == []
    assert changed_inputs(here) == []
