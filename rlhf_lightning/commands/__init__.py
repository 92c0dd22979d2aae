"""The commands beside ``fit``, ``validate`` and ``test``: one module each, with ``main(argv) -> int | None``."""

COMMANDS = {
    "fit": "train a supervised model, a reward model or a policy",
    "validate": "evaluate a trained model on held-out data",
    "test": "evaluate a trained model on the test data",
    "pipeline": "train a supervised model, a reward model and a policy, one after another",
    "pairs": "sample responses from a policy and have annotators or the gold reward compare them",
    "crossval": "train once for each of k folds of the feedback, and report the mean over the folds",
    "compare": "run a declared comparison of several arms over several seeds, and judge its claims",
    "sweep": "search for good hyperparameters by a W&B sweep's file, without W&B",
    "report": "write figures and a summary of finished or running runs",
    "generate": "answer prompts with a trained policy",
    "score": "score responses with a trained reward model or with a task's gold reward",
    "bestof": "measure what best-of-n sampling makes of a policy, by the reward that selects and by gold",
    "winrate": "let two policies answer the same held-out prompts, and say which wins how often",
    "prove": "compare each optimizer's expected gradient with the exact one of a tiny task",
    "bench": "time the parts of an iteration on this machine, beside other ways to do the same",
    "new": "write an optimizer, loss, reward, task or callback of your own: one file to start from",
}
"""Every command with its one line of help, in the order of the program's help."""
