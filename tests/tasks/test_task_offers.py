import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task

CALLS = {
    "prompts": ("train",),
    "demonstrations": ("train",),
    "preferences": ("train",),
    "rankings": ("heldout",),
    "ratings": ("heldout",),
    "labels": ("heldout",),
    "panel": (0, 2),
    "annotate": ("q", "a", "b", 0),
    "rank": ("q", ("a", "b", "c"), 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_task_refuses_what_it_does_not_provide(name):
    needed = "annotators" if name in ("panel", "annotate", "rank") else name
    line = rf"{name}\(\) needs {needed}, which task Task does not provide \(it provides nothing\)"
    with pytest.raises(UserError, match=line):
        getattr(Task(), name)(*CALLS[name])
