from collections import Counter
from types import SimpleNamespace

import pytest

from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.passes import PassDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.tasks.text.prompts_io import write_jsonl


class Numbers(PassDataModule[int]):
    """The numbers below ``size``, and a few held out."""

    def __init__(self, size=13, batch_size=4, heldout=6, eval_limit=None):
        super().__init__(Task(), batch_size, eval_limit)
        self.size, self.extra, self.loads = size, heldout, 0

    def load(self):
        self.loads += 1
        return range(self.size), [100 + i for i in range(self.extra)]


def ready(**changes):
    data = Numbers(**changes)
    data.setup()
    return data


@pytest.mark.parametrize(("size", "batch_size"), [(13, 4), (12, 4), (3, 5), (5, 5), (7, 1)])
def test_each_pass_visits_each_example_once_in_another_order(size, batch_size):
    data = ready(size=size, batch_size=batch_size)
    steps = data.steps_per_pass()
    assert steps == -(-size // batch_size)
    passes = [[i for step in range(n * steps, (n + 1) * steps) for i in data.train_batch(step)] for n in range(4)]
    assert all(sorted(one) == list(range(size)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert all(len(data.train_batch(step)) == batch_size for step in range(steps - 1))


def test_batches_are_a_function_of_the_step():
    steps = list(range(20))
    forward = {step: ready().train_batch(step) for step in steps}
    data = ready()
    for step in [19, 0, 7, 8, 3, 3, 12, *reversed(steps)]:
        assert data.train_batch(step) == forward[step]


def test_run_resumed_in_the_middle_of_a_pass_goes_on_where_it_stopped():
    whole = [ready().train_batch(step) for step in range(11)]
    before, after = ready(), ready()
    resumed = [before.train_batch(step) for step in range(6)] + [after.train_batch(step) for step in range(6, 11)]
    assert resumed == whole
    assert Counter(i for batch in resumed[4:8] for i in batch) == Counter(range(13))


def test_batches_depend_on_the_seed(monkeypatch):
    first = [ready().train_batch(step) for step in range(4)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert [ready().train_batch(step) for step in range(4)] != first


def test_heldout_batches_cover_the_limit_in_order():
    data = ready(eval_limit=5)
    batches = [data.heldout_batch(number) for number in data.val_dataloader()]
    assert batches == [[100, 101, 102, 103], [104]]
    assert list(data.test_dataloader()) == [0, 1]
    assert [i for n in ready().val_dataloader() for i in ready().heldout_batch(n)] == [100 + i for i in range(6)]


def test_train_loader_counts_the_batches_of_a_pass():
    assert list(ready().train_dataloader()) == [0, 1, 2, 3]


def test_examples_are_read_once():
    data = Numbers()
    for stage in ("fit", "validate", None):
        data.setup(stage)
    assert data.loads == 1


@pytest.mark.parametrize(("size", "heldout"), [(0, 3), (3, 0)])
def test_no_examples_are_refused(size, heldout):
    with pytest.raises(UserError, match=f"Task gives {size} training and {heldout} held-out examples"):
        ready(size=size, heldout=heldout)


@pytest.mark.parametrize("name", ["batch_size", "eval_limit"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_must_be_positive(name, value):
    with pytest.raises(UserError, match=rf"data\.init_args\.{name} must be at least 1, got {value}"):
        Numbers(**{name: value})


def test_demonstrations_are_the_tasks_own():
    task = Assistant(demonstrations=20)
    data = DemonstrationDataModule(task, batch_size=8, eval_limit=3)
    data.setup()
    assert list(data.train) == list(task.demonstrations("train"))
    assert list(data.heldout) == list(task.demonstrations("heldout")[:3])


def test_preferences_come_from_a_file_that_shares_no_prompt_between_the_splits(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, ({"prompt": f"question {i % 30}", "chosen": f"yes {i}", "rejected": "no"} for i in range(60)))
    data = PreferenceDataModule(Assistant(), str(path), heldout_fraction=0.2, batch_size=8)
    data.setup()
    train, heldout = ({pair.prompt for pair in pairs} for pairs in (data.train, data.heldout))
    assert train
    assert heldout
    assert not train & heldout
    assert sorted(pair.chosen for pair in (*data.train, *data.heldout)) == sorted(f"yes {i}" for i in range(60))
    assert all(pair.rejected == "no" for pair in data.train)


def test_task_without_preferences_names_the_command_that_makes_them():
    with pytest.raises(UserError, match=r"data\.init_args\.pairs is missing: task Assistant.*rlhf_lightning pairs"):
        PreferenceDataModule(Assistant())


def test_preferences_of_the_task_are_used_where_it_has_some():
    pairs = {"train": ["a", "b"], "heldout": ["c"]}
    task = SimpleNamespace(provides=frozenset({"preferences"}), preferences=pairs.__getitem__)
    data = PreferenceDataModule(task, batch_size=1)
    data.setup()
    assert (data.train, data.heldout) == (["a", "b"], ["c"])


def test_missing_file_of_pairs_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        PreferenceDataModule(Assistant(), str(tmp_path / "pairs.jsonl"))
