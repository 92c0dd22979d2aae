"""The commands beside ``fit``, ``validate`` and ``test``: one module each, with ``main(argv) -> int | None``."""

COMMANDS = {
    "fit": "train a supervised model, a reward model or a policy",
    "validate": "evaluate a trained model on held-out data",
    "test": "evaluate a trained model on the test data",
    "pipeline": "supervised model, reward model and policy, one after another",
    "pairs": "draw preference pairs from a supervised model",
    "crossval": "fit once for each of k folds of the feedback, and the mean over them",
    "report": "figures and a summary of finished or running runs",
    "generate": "responses of a trained policy to prompts",
    "score": "scores of a trained reward model for prompts and responses",
    "prove": "what each policy optimizer estimates, compared with the exact gradient of a tiny task",
}
"""Every command, with the line that the program help shows."""
