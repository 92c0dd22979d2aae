import pytest

from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.commands import pairs


@pytest.fixture
def write_pairs(monkeypatch):
    """Run ``pairs`` on a task object, with options by name, and return the text of the file."""

    def run(task, *, policy, out, **options):
        monkeypatch.setattr(LineParser, "parse_with_task", lambda self, argv: (self.parse_intermixed_args(argv), task))
        words = ["--policy", str(policy), "--out", str(out)]
        for name, value in options.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        pairs.main(words)
        return out.read_text()

    return run
