"""Say in words what a run did, and no more than its numbers show."""

from rlhf_lightning.plots.verdict.arm import judge_arm as judge_arm
from rlhf_lightning.plots.verdict.policy import judge as judge
from rlhf_lightning.plots.verdict.reward import describe_reward as describe_reward
from rlhf_lightning.plots.verdict.statement import Verdict as Verdict
