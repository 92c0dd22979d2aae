"""The stages of a pipeline as plain command lines, and what each depends on. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.config_files import find_config, read_config, setting
from rlhf_lightning.records.environment import git_commit, package_version
from rlhf_lightning.records.inputs import changed_inputs, digest, read_inputs
from rlhf_lightning.records.run_directory import STAGES

CHECKPOINT = "backbone.init_args.checkpoint"
_COMMON = ("task", "backbone", "trainer", "pipeline")
_FEEDBACK_FILE = {"PreferenceDataModule": "pairs", "RankingDataModule": "rankings", "LabelDataModule": "labels"}
"""The argument that takes the file of the pairs stage, by the class of the data."""


@dataclass(frozen=True)
class Stage:
    """A command that writes into a directory of its own.

    Args:
        command: the words after ``python -m rlhf_lightning``.
        inputs: files and folders that must exist, by the name of the stage that makes them.
        makes: the file or folder that later stages read.
    """

    name: str
    command: list[str]
    directory: Path
    inputs: dict[str, Path]
    makes: Path


@dataclass
class Settings:
    """Configuration and options of a pipeline.

    Args:
        configs: configuration files of all stages.
        pipeline: settings by stage, from the ``pipeline`` sections of all configurations.
        common: options of all stages from the command line, by key.
        own: options of single stages from the command line, by stage and key.
        folders: names of the folders of stages, by stage, where they are not those of the stages.
    """

    configs: list[str]
    directory: Path
    seed: int
    pipeline: dict[str, dict[str, Any]]
    common: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.directory / self.folders.get(stage, stage)


def read_pipeline(configs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The ``pipeline`` sections of all configurations, later ones on top.

    Raises:
        UserError: there is none, or a key does not belong where it stands.
    """
    merged: dict[str, dict[str, Any]] = {}
    for path in configs:
        content = read_config(find_config(path))
        for key in content:
            if key not in _COMMON:
                raise UserError(f"{path}: {key} belongs to one stage; give it under pipeline (such as pipeline.policy)")
        section = content.get("pipeline") or {}
        if not isinstance(section, dict):
            raise UserError(f"{path}: pipeline is a mapping of stages ({', '.join(STAGES)}) to their settings")
        for stage, settings in section.items():
            if stage not in STAGES:
                raise UserError(f"{path}: unknown stage {stage!r} in pipeline; expected one of {', '.join(STAGES)}")
            if not isinstance(settings, dict | None):
                raise UserError(f"{path}: pipeline.{stage} is a mapping, for instance {{config: FILE.yaml}}")
            merged.setdefault(stage, {}).update(settings or {})
    if not merged:
        raise UserError(f"no pipeline section in {', '.join(configs)}; configs/quickstart.yaml shows one")
    return merged


def build_stages(settings: Settings) -> list[Stage]:
    """Command lines of all stages of the pipeline, in order."""
    build = {"sft": _sft, "pairs": _pairs, "reward": _reward, "policy": _policy}
    return [build[name](settings) for name in STAGES if name in settings.pipeline]


def _sft(settings: Settings) -> Stage:
    return _fit(settings, "sft", {}, {})


def _pairs(settings: Settings) -> Stage:
    if "sft" not in settings.pipeline:
        raise UserError("pipeline.pairs needs pipeline.sft: the pairs are sampled from the supervised model")
    policy, out = _export(settings, "sft"), _pairs_file(settings)
    section = settings.pipeline["pairs"]
    lists = {key: [_word(item) for item in value] for key, value in section.items() if isinstance(value, list)}
    own = _flat(section) | lists | settings.own.get("pairs", {})
    words = ["--policy", str(policy), "--out", str(out), "--seed", str(settings.seed), *_words(own)]
    task = {key: value for key, value in settings.common.items() if key.partition(".")[0] == "task"}
    command = ["pairs", *config_words(settings.configs), *_words(task), *words]
    return Stage("pairs", command, settings.folder("pairs"), {"sft": policy}, out)


def _reward(settings: Settings) -> Stage:
    feedback = _FEEDBACK_FILE.get(_data_class(settings, "reward"), "pairs")
    return _fit(settings, "reward", *_from_earlier_stages(settings, feedback))


def _policy(settings: Settings) -> Stage:
    source = settings.own.get("policy", {}).pop("reward", settings.pipeline["policy"].get("reward"))
    if source not in (None, "learned", "gold"):
        raise UserError(f"pipeline.policy.reward is {source!r}; expected learned or gold")
    if source == "learned" and "reward" not in settings.pipeline:
        raise UserError("pipeline.policy.reward is learned, but there is no pipeline.reward that makes a reward model")
    feedback = _FEEDBACK_FILE.get(_data_class(settings, "policy"))
    options, inputs = _from_earlier_stages(settings, feedback)
    # a policy that learns from feedback is not trained by the reward model, which only judges its responses
    reward_key = "data.init_args.reward" if feedback is None else "model.init_args.reward"
    if source != "gold" and "reward" in settings.pipeline:
        inputs["reward"] = _export(settings, "reward")
        options |= {reward_key: "LearnedReward", f"{reward_key}.init_args.path": str(inputs["reward"])}
    return _fit(settings, "policy", options, inputs)


def _data_class(settings: Settings, stage: str) -> str:
    """Name of the class of the stage's data; empty where its configurations name none."""
    classes = [setting(read_config(find_config(path)), "data.class_path") for path in _configs(settings, stage)]
    return next((str(path).rpartition(".")[2] for path in reversed(classes) if path), "")


def _from_earlier_stages(settings: Settings, feedback: str | None) -> tuple[dict[str, str], dict[str, Path]]:
    """Options and inputs of a stage: the supervised model and the pairs, where the pipeline makes them.

    Args:
        feedback: the argument of the stage's data that takes the pairs; None if it learns from none.
    """
    options: dict[str, str] = {}
    inputs: dict[str, Path] = {}
    if "sft" in settings.pipeline:
        inputs["sft"] = _export(settings, "sft")
        options[CHECKPOINT] = str(inputs["sft"])
    if "pairs" in settings.pipeline and feedback is not None:
        inputs["pairs"] = _pairs_file(settings)
        options[f"data.init_args.{feedback}"] = str(inputs["pairs"])
    return options, inputs


def _fit(settings: Settings, name: str, options: dict[str, str], inputs: dict[str, Path]) -> Stage:
    section = {key: value for key, value in settings.pipeline[name].items() if key not in ("config", "reward")}
    section, own = _flat(section), settings.own.get(name, {})
    if CHECKPOINT in section | own:  # this stage starts from another model
        inputs = {made_by: path for made_by, path in inputs.items() if made_by != "sft"}
    given = settings.common | options | {k: v for k, v in section.items() if k not in settings.common} | own
    words = config_words([*settings.configs, *_configs(settings, name)])
    location = ["--runs_dir", str(settings.directory), "--name", settings.folder(name).name]
    command = ["fit", *words, "--seed_everything", str(settings.seed), *location, *_words(given)]
    return Stage(name, command, settings.folder(name), inputs, _export(settings, name))


def _configs(settings: Settings, stage: str) -> list[str]:
    """The stage's own configurations."""
    configs = settings.pipeline[stage].get("config") or []
    return [configs] if isinstance(configs, str) else list(configs)


def _export(settings: Settings, stage: str) -> Path:
    return settings.folder(stage) / "export"


def _pairs_file(settings: Settings) -> Path:
    return settings.folder("pairs") / "pairs.jsonl"


def config_words(configs: Sequence[str]) -> list[str]:
    """``--config FILE`` for each file.

    Raises:
        UserError: a file does not exist.
    """
    for path in configs:
        find_config(path)
    return [word for path in configs for word in ("--config", str(path))]


def _words(options: Mapping[str, str | list[str]]) -> list[str]:
    values = {key: [value] if isinstance(value, str) else value for key, value in options.items()}
    return [word for key, words in values.items() for word in (f"--{key}", *words)]


def dotted(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a section; a class stands before its arguments."""
    for key, value in section.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{key}", value
            continue
        if "class_path" in value:
            yield f"{prefix}{key}", value["class_path"]
        yield from dotted({k: v for k, v in value.items() if k != "class_path"}, f"{prefix}{key}.")


def _flat(section: Mapping[str, Any]) -> dict[str, str]:
    """A section as options of a command line."""
    return {key: _word(value) for key, value in dotted(section)}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# -- what a stage depends on -----------------------------------------------------------------------------------------


def key_of(stage: Stage) -> dict[str, Any]:
    """What a stage is made from: its command, its configurations, earlier stages' results, and the package's code.

    The place of the runs is no part of it: they may be moved, or named in another way. What the components of a run
    read is in its ``inputs.json``, see `changed_inputs`.
    """
    files = options_of(stage.command).get("--config", [])
    # Without the pipeline sections, which say what to do in other stages; the stage's own settings are in its command.
    configs = {file: {k: v for k, v in read_config(find_config(file)).items() if k != "pipeline"} for file in files}
    texts = {file: json.dumps(content, sort_keys=True, default=str) for file, content in configs.items()}
    contents = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in texts.items()}
    contents |= {_placed(str(path), stage): digest(path) for path in stage.inputs.values()}
    if stage.name == "pairs":  # no run, and has the task that the supervised model was trained on
        contents |= {one.path: digest(Path(one.path)) for one in read_inputs(stage.inputs["sft"].parent)}
    command = [_placed(word, stage) for word in stage.command]
    return {"version": package_version(), "commit": git_commit(), "command": command, "contents": contents}


def changed_files(stage: Stage, key: Mapping[str, Any]) -> list[str]:
    """What the components of a stage read and is not as it was, but for earlier stages' results, which have moved."""
    known = key["contents"].values()
    return [one.path for one in changed_inputs(stage.directory) if one.digest not in known]


def _placed(word: str, stage: Stage) -> str:
    """A path in the pipeline's folder as seen from there; other words as they are."""
    path, folder = Path(word), stage.directory.parent
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else word


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two keys, in words."""
    differences = [
        f"{what} of the package {old.get(what)} → {new.get(what)}"
        for what in ("version", "commit")
        if old.get(what) != new.get(what)
    ]
    before, after = options_of(old.get("command", [])), options_of(new["command"])
    for option in dict.fromkeys([*after, *before]):
        if before.get(option) != after.get(option):
            values = (" ".join(side.get(option, ["not given"])) for side in (before, after))
            differences.append(f"{option.removeprefix('--')} {' → '.join(values)}")
    contents = old.get("contents", {})
    differences += [f"{name} changed" for name, value in new["contents"].items() if contents.get(name, value) != value]
    return differences or ["its inputs changed"]


def options_of(command: Sequence[str]) -> dict[str, list[str]]:
    """Values of each option of a command line."""
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for word in command:
        if word.startswith("--"):
            values = options.setdefault(word, [])
        else:
            values.append(word)
    return options
