"""`eval`: run policies closed loop on fresh initial states and score them with intervals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.draft import Draft
from lwdctl.artifacts.durable import write_durably
from lwdctl.artifacts.provenance import software
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import METHOD, RANDOM, EvalConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.envs.table import SIMULATORS
from lwdctl.evaluation.compatibility import check_compatible
from lwdctl.evaluation.episodes import EpisodeResult, plan_demonstrations, plan_episodes
from lwdctl.evaluation.results import Condition, ConditionResult, ResultRow, result_rows
from lwdctl.evaluation.rollout import rollout
from lwdctl.evaluation.video import Recording
from lwdctl.policies.policy import EpisodePlan
from lwdctl.stages.eval_arms import (
    Arm,
    make_arms,
    models_used,
)
from lwdctl.stages.eval_cells import (
    EPISODES_FOLDER,
    KEYS,
    Circumstances,
    Measured,
    cell_key,
    read_record,
)
from lwdctl.stages.eval_cost import add_latency, price
from lwdctl.stages.eval_policies import Policies
from lwdctl.stages.lwd_policy import SAMPLED
from lwdctl.stages.stage import StageContext
from lwdctl.stages.videos import check_video, list_videos, recording_of


def run(config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Evaluate and publish an `evaluation` artifact.

    Raises:
        ConfigError: Unknown tasks, policies or latents, or a model that is not there.
        SimulatorError: Episodes were lost to simulator errors (after publishing what ran).
    """
    store = SnippetStore.open(inputs["snippets"].path)
    _check_environment(config, store, context)
    arms = make_arms(config, inputs, context)
    policies = Policies(config, store, arms)
    shared = Circumstances(
        policies.labels, inputs["snippets"].digest, str(policies.device), software()
    )
    work = _Work(config, store, policies, context, shared)
    leading = list(inputs.values())[-1]
    with context.workspace.begin(
        "evaluation",
        context.name or leading.name,
        config=to_mapping(config),
        inputs=models_used(arms, inputs),
        resume=context.resume,
    ) as draft:
        # Finished arms are checkpoints: an interrupted evaluation goes on after them.
        cells = [cell for arm in arms for cell in work.measure(arm, draft)]
        if config.latency:
            cells = add_latency(arms, policies, store, draft.checkpoints, context.progress)
        shutil.copytree(draft.checkpoints, draft.path / EPISODES_FOLDER, dirs_exist_ok=True)
        (draft.path / "results.json").write_text(json.dumps(cells, indent=2) + "\n")
        keys = {arm.name: cell_key(arm, config, shared) for arm in arms}
        (draft.path / KEYS).write_text(json.dumps(keys, indent=2) + "\n")
        summary: dict[str, Any] = {"protocol": _protocol_text(config, policies), "results": cells}
        if config.video:
            summary["videos"] = list_videos([arm.name for arm in arms], draft.path)
        artifact = draft.publish(summary, seed=config.seed, device=str(policies.device))
    _refuse_errors(cells, artifact)
    return artifact


def chosen(
    config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> list[Artifact]:
    """Return the models that an evaluation with these settings would run."""
    """Return the models that an evaluation with these settings would run."""
    return models_used(make_arms(config, inputs, context), inputs)


def _check_environment(config: EvalConfig, store: SnippetStore, context: StageContext) -> None:
    """Refuse data without an environment, and one that does not fit the data."""
    adapter = store.spec.env.adapter
    if not adapter:
        raise ConfigError(
            "the data names no environment to evaluate in",
            "ingest it again with --env ADAPTER/NAME",
        )
    tasks = config.task or store.spec.env.tasks
    if not tasks:
        raise ConfigError(
            f"the data names no task of '{adapter}'", "ingest it again with --env ADAPTER/NAME"
        )
    task = tasks[0]
    _check_seeds(config, store)
    if config.video:
        context.progress.message("trying a video frame")
        check_video(store.spec, task, config.timeout)
    SIMULATORS.load(adapter)
    check_compatible(store, task)


def _check_seeds(config: EvalConfig, store: SnippetStore) -> None:
    """Refuse to begin where demonstrations began; `encoded` does so on purpose."""
    seeds = store.episodes.seed
    used = seeds[(seeds >= config.seed) & (seeds < config.seed + config.episodes)]
    if used.size and not (config.policy == (METHOD,) and config.latent == ("oracle",)):
        last = config.seed + config.episodes - 1
        raise ConfigError(
            f"{used.size} demonstrations were recorded from the evaluation seeds {config.seed}.."
            f"{last}: a policy would begin where it was trained",
            f"--seed {int(seeds.max()) + 1}",
        )


@dataclass(frozen=True)
class _Work:
    """What measuring any arm needs."""

    config: EvalConfig
    store: SnippetStore
    policies: Policies
    context: StageContext
    shared: Circumstances

    @cached_property
    def earlier(self) -> Measured:
        """What the workspace's evaluations hold."""
        return Measured(self.context.workspace, self.shared.software)

    def measure(self, arm: Arm, draft: Draft) -> list[dict[str, Any]]:
        """Run one arm, or take it from where it was measured before."""
        say = self.context.progress.message
        done = draft.checkpoints / f"{arm.name}.json"
        key = cell_key(arm, self.config, self.shared)
        kept = read_record(done, key)
        if kept:
            say(f"{arm.name}: already measured")
            return _cells(kept)
        # Nobody knows whether the code of an outside environment is what it was.
        outside = ":" in self.store.spec.env.adapter
        fresh = self.config.again or self.config.video or outside
        found = None if fresh else self.earlier.find(key)
        if found:
            say(f"{arm.name}: already measured in {found[0]}")
            write_durably(done, _text(found[1]))
            return _cells(found[1])
        say(f"{arm.name}:")
        plans = self._plans(arm)
        recording = recording_of(
            arm.name, plans, self.config.video, self.config.video_every or 0, draft.path
        )
        results = _roll(arm, self, plans, recording)
        record = self._record(arm, results, key).to_json()
        write_durably(done, _text(record))
        for name, reason in (recording.failures() if recording else {}).items():
            say(f"  no video of {name}: {reason}")
        return _cells(record)

    def _plans(self, arm: Arm) -> list[EpisodePlan]:
        config, labels = self.config, self.policies.labels
        if arm.latent == "oracle":
            split = "" if config.oracle_split == "all" else config.oracle_split
            return plan_demonstrations(
                self.store, config.episodes, config.seed, config.task, split, labels
            )
        env = self.store.spec.env
        return plan_episodes(env, config.episodes, config.seed, config.task, labels)

    def _record(self, arm: Arm, results: Sequence[EpisodeResult], key: str) -> ConditionResult:
        env = self.store.spec.env.adapter
        score = SIMULATORS.load(env).metrics[0].name
        returns = self._source_returns(results)
        pricing = price(arm, self.config, self.policies)
        rows = result_rows(results, score, _condition(arm, self), returns, pricing)
        self.context.progress.message(_said(rows[-1]))
        return ConditionResult(tuple(rows), tuple(results), _models(arm), key)

    def _source_returns(self, results: Sequence[EpisodeResult]) -> dict[int, float]:
        """Return the recorded return of every demonstration that was restored."""
        if not self.store.has_rewards:
            return {}
        table, read = self.store.episodes, self.store.read
        returns = {}
        for index in {item.plan.demonstration for item in results} - {-1}:
            start = int(table.start[index])
            rewards = read("reward", start, start + int(table.length[index]))
            returns[index] = float(rewards.sum(dtype="float64"))
        return returns


def _models(arm: Arm) -> dict[str, str]:
    return {kind: item.reference for kind, item in arm.trained.artifacts.items()}


def _text(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def _cells(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = record["results"]
    return cells


def _roll(
    arm: Arm, work: _Work, plans: Sequence[EpisodePlan], recording: Recording | None
) -> Sequence[EpisodeResult]:
    config = work.config
    answer = rollout(
        work.policies.build(arm),
        work.store.spec.env,
        plans,
        width=config.num_envs,
        workers=config.processes,
        max_steps=config.max_steps,
        perturbation=arm.perturbation,
        perturbation_probability=config.perturbation_probability,
        timeout=config.timeout,
        progress=work.context.progress,
        recording=recording,
    )
    return answer.episodes


def _condition(arm: Arm, work: _Work) -> Condition:
    config, trained = work.config, arm.trained
    length, horizon = work.policies.lengths(arm)
    samples = arm.latent == SAMPLED or (arm.policy not in (METHOD, RANDOM) and horizon is not None)
    return Condition(
        policy=arm.policy,
        latent=arm.latent,
        env=work.store.spec.env.adapter,
        train_seed=trained.seed,
        snippet_length=length,
        horizon="episode" if horizon == 0 else horizon,
        perturbation=arm.perturbation,
        sampler=config.sampler if samples else "",
        num_inference_steps=config.num_inference_steps if samples else None,
        warm_start=config.warm_start if samples else 0.0,
    )


def _protocol_text(config: EvalConfig, policies: Policies) -> str:
    per = "task and label" if policies.labels else "task"
    magnitudes = ", ".join(f"{item:g}" for item in config.perturbation)
    pushes = (
        f"disturbances of magnitude {magnitudes} with probability"
        f" {config.perturbation_probability:g} per step"
        if any(config.perturbation)
        else "undisturbed"
    )
    return (
        f"{config.episodes} episodes per {per} from evaluation seeds {config.seed}.."
        f"{config.seed + config.episodes - 1}; 'encoded' instead restores recorded starts"
        f" ({config.oracle_split} demonstrations, at most as many);"
        f" {_horizon_text(config, policies)}; {pushes};{_warm_start_text(config)}"
        f" success at any step; 95 % Wilson intervals; averaged (EMA) weights"
    )


def _warm_start_text(config: EvalConfig) -> str:
    if not config.warm_start:
        return ""
    share = f"{100 * config.warm_start:g} %"
    return f" queries after an episode's first do {share} of the denoising steps (warm start);"


def _horizon_text(config: EvalConfig, policies: Policies) -> str:
    if config.is_grid:
        return "a model per horizon and training seed"
    pairs = {policies.lengths(arm) for arm in policies.arms} - {(None, None)}
    texts = []
    for length, horizon in sorted(pairs, key=str):
        fit = "" if horizon == length else f" (the model's snippets have {length})"
        texts.append(f"horizon {horizon or 'episode'} steps{fit}")
    return ", ".join(texts) or "no queries"


def _said(row: ResultRow) -> str:
    found = row.success
    rate = f"success {found.value:.3f}" if found.n else "no episode"
    return f"  {rate} [{found.low:.3f}, {found.high:.3f}] over {found.n} episodes"


def _refuse_errors(cells: Sequence[Mapping[str, Any]], artifact: Artifact) -> None:
    errors = sum(cell["errors"] for cell in cells if cell["task"] == "all")
    if errors:
        raise SimulatorError(
            f"{errors} episodes were lost to simulator errors; see {artifact.path}",
            "they count neither as success nor as failure; run the evaluation again",
        )
