"""Say in words what a run did, and no more than its numbers show."""

from rlhf_lightning.plots.verdict.control import judge_control
from rlhf_lightning.plots.verdict.preference import judge_preference
from rlhf_lightning.plots.verdict.reward import describe_reward
from rlhf_lightning.plots.verdict.statement import Verdict
from rlhf_lightning.plots.verdict.text import judge_text
from rlhf_lightning.records.runs import Run

__all__ = ["Verdict", "describe_reward", "judge"]


def judge(run: Run) -> Verdict:
    """What happened in a policy run."""
    kinds = {"control": judge_control, "preference": judge_preference}
    return kinds.get(run.kind, judge_text)(run)
