"""`eval`: run policies closed loop on fresh initial states and score them with intervals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.described import open_or_describe
from lwdctl.artifacts.files import write_durably
from lwdctl.artifacts.locks import claimed, working_in
from lwdctl.artifacts.manifest import software
from lwdctl.artifacts.run_in_progress import CHECKPOINTS, RunInProgress
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import EvalConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ArtifactError, ConfigError, SimulatorError
from lwdctl.core.seeding import EVALUATION_SEED_START
from lwdctl.core.suggest import did_you_mean
from lwdctl.envs.table import check_tasks
from lwdctl.evaluation import checks
from lwdctl.evaluation.cost import condition_cost, trained_condition
from lwdctl.evaluation.episodes import (
    EpisodeResult,
    check_not_all_lost,
    described_failures,
    plan_demonstrations,
    plan_episodes,
    reasons_of_loss,
)
from lwdctl.evaluation.journal import EpisodeJournal
from lwdctl.evaluation.latency import time_policy
from lwdctl.evaluation.results import Condition, ConditionResult, result_rows
from lwdctl.evaluation.rollout import RolloutResult, rollout
from lwdctl.evaluation.video import Recording, first_episodes
from lwdctl.methods.lwd import ORACLE, SAMPLED
from lwdctl.methods.method import Acting, TrainedPolicy
from lwdctl.methods.trained import open_policy
from lwdctl.policies.policy import BatchPolicy, EpisodePlan
from lwdctl.policies.random import RandomPolicy
from lwdctl.stages import eval_models
from lwdctl.stages.eval_models import LWD, PlannedCondition, models_used, plan_conditions
from lwdctl.stages.eval_parts import (
    VIDEOS_FOLDER,
    claim,
    parts_folder,
    read_record,
    run_that_measures,
    take_parts,
    text_of_record,
    write_record,
)
from lwdctl.stages.stage import REST, Part, StageContext
from lwdctl.training.loop import choose_device

EPISODES_FOLDER = "episodes"


def run(config: EvalConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Evaluate and publish an `evaluation` artifact.

    Raises:
        ConfigError: Unknown tasks, policies or latents, or a model that is not there.
        SimulatorError: Episodes were lost to simulator errors (what ran is published or kept).
    """
    data = _open_data(config, inputs["snippets"])
    _check_environment(config, data, context)
    measured = _without_oracle(config, data, context)
    conditions = plan_conditions(measured, inputs, context)
    evaluation = _Evaluation(measured, data, conditions, context)
    evaluation.check()
    primary = list(inputs.values())[-1]
    name, models = context.name or primary.name, models_used(conditions, inputs)
    for model in (item for item in models if item.method):
        context.progress.message(f"reading {model.reference} ({model.method})")
    parts = parts_folder(context.workspace, name, config, models)
    with (
        context.workspace.begin(
            "evaluation",
            name,
            config=to_mapping(config),
            inputs=models,
            resume=context.resume,
        ) as output,
        context.followed(output),
    ):
        # Finished conditions and episodes are checkpoints: an interrupted evaluation goes on after
        # them.
        take_parts(parts, output)
        evaluation.measure_all(output)
        if config.latency:
            evaluation.add_latency(output.checkpoints)
        rows, lost = _publish_records(conditions, output)
        write_durably(output.path / "results.json", f"{json.dumps(rows, indent=2)}\n".encode())
        summary: dict[str, Any] = {"protocol": evaluation.protocol, "results": rows}
        if config.video:
            summary["videos"] = {item.name: _videos(output.path, item) for item in conditions}
        artifact = output.publish(summary, seed=config.seed, device=str(evaluation.device))
    shutil.rmtree(parts, ignore_errors=True)
    _check_lost_episodes(lost, artifact)
    return artifact


def run_part(
    config: EvalConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    part: Part,
) -> None:
    """Measure a part of an evaluation's conditions and keep their records.

    Parts may run at the same time on several machines; `run` takes what they measured.

    Args:
        config: Settings of the whole evaluation.
        inputs: Its inputs.
        context: Where it runs.
        part: Part i of n measures the conditions i, i + n, and so on, before `run` begins; the
            rest, while `run` measures in another process of this machine, those that no process
            has begun, the last one first.

    Raises:
        ConfigError: As for `run`.
    """
    data = _open_data(config, inputs["snippets"])
    measured = _without_oracle(config, data, context)
    conditions = plan_conditions(measured, inputs, context)
    evaluation = _Evaluation(measured, data, conditions, context)
    name, models = context.name or list(inputs.values())[-1].name, models_used(conditions, inputs)
    if part == REST:
        folder = run_that_measures(context.workspace, name, config, models)
        if folder is not None:
            evaluation.measure_rest(folder)
        return
    _check_environment(config, data, context)
    evaluation.check()
    folder = parts_folder(context.workspace, name, config, models)
    index, count = part
    with working_in(folder):
        for condition in conditions[index::count]:
            evaluation.measure(condition, folder, folder)


def _open_data(config: EvalConfig, snippets: Artifact) -> SnippetStore:
    """Open the demonstrations; their description is enough where no episode of them is read."""
    if config.latency or (LWD in config.policy and ORACLE in config.latent):
        return SnippetStore.open(snippets.path)
    return open_or_describe(snippets.path)


def _without_oracle(config: EvalConfig, data: SnippetStore, context: StageContext) -> EvalConfig:
    """Return the settings without the default's `oracle` where no initial state is recorded."""
    default = EvalConfig().latent
    if LWD not in config.policy or config.latent != default or checks.restores_initial_states(data):
        return config
    held = "an initial state (key initial_state) that the environment can restore"
    context.progress.message(f"'oracle' is left out: no demonstration holds {held}")
    return replace(config, latent=tuple(item for item in default if item != ORACLE))


class _Checked(NamedTuple):
    """What any policy of an evaluation is conditioned on, and what one of them can do."""

    condition: frozenset[str]
    samples: bool
    has_chunks: bool
    can_replan_early: bool
    can_inpaint: bool


@dataclass(frozen=True)
class _Evaluation:
    """What measuring any condition needs."""

    config: EvalConfig
    data: SnippetStore
    conditions: Sequence[PlannedCondition]
    context: StageContext

    @cached_property
    def device(self) -> torch.device:
        """Where networks run."""
        return choose_device(self.config.device)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Behavior labels to run; all where a model is conditioned on them and none is named."""
        known = self.data.spec.labels
        for label in self.config.label:
            if label not in known:
                hint = did_you_mean(label, known) or checks.NAME_LABELS
                raise ConfigError(f"'{label}' is no label of this data", hint)
        if self.config.label:
            return tuple(dict.fromkeys(self.config.label))
        return known if known and "label" in self._checked.condition else ()

    @cached_property
    def software(self) -> dict[str, Any]:
        """What computes the episodes; it is asked of git once."""
        return software()

    @cached_property
    def _opened(self) -> dict[Any, TrainedPolicy]:
        return {}

    def _open(self, condition: PlannedCondition) -> TrainedPolicy:
        """Open a condition's policy; the weights of one model are in memory at a time."""
        model = condition.model
        key = condition.policy, model and model.path
        if key not in self._opened:
            self._opened.clear()
            self._opened[key] = open_policy(condition.policy, condition.artifacts, self.device)
        return self._opened[key]

    def _acting(self, condition: PlannedCondition) -> Acting:
        latent = condition.latent or SAMPLED
        return Acting.of(self.config, horizon=condition.horizon, latent=latent)

    @cached_property
    def _checked(self) -> _Checked:
        """What the policies are like; each is opened once for it and checked."""
        condition: set[str] = set()
        samples = has_chunks = can_replan_early = can_inpaint = False
        for item in self.conditions:
            policy, acting = self._open(item), self._acting(item)
            policy.check(acting)
            condition.update(policy.condition)
            samples |= policy.samples(acting)
            has_chunks |= policy.has_chunks
            can_replan_early |= policy.can_replan_early and policy.samples(acting)
            can_inpaint |= policy.can_inpaint
        return _Checked(frozenset(condition), samples, has_chunks, can_replan_early, can_inpaint)

    def check(self) -> None:
        """Check labels and every model before anything runs.

        Raises:
            ConfigError: An unknown label, a model that cannot be sampled so, a horizon that the
                chunks of a model do not reach, or a setting that no policy has a use for.
        """
        _, _ = self._checked, self.labels
        for oracle in [item for item in self.conditions if item.latent == ORACLE][:1]:
            self._plans(oracle)  # which are recorded episodes
        for text in filter(None, dict.fromkeys(map(self._beyond_training, self.conditions))):
            self.context.progress.message(text)
        if not self._checked.samples and (self.config.warm_start or self.config.guidance != 1):
            raise ConfigError(
                "warm_start and guidance change how latents or actions are sampled, which none of"
                " these policies does",
                "leave --warm-start and --guidance out",
            )
        if not self._checked.has_chunks and self.config.temporal_ensemble is not None:
            raise ConfigError(
                "temporal_ensemble averages chunks of actions, which none of these policies has",
                "leave --temporal-ensemble out, or add dp or ldp to --policy",
            )
        if not self._checked.can_inpaint and self.config.inpainting:
            raise ConfigError(
                "inpainting keeps to sampled actions, which none of these policies has",
                "leave --inpainting out, or add dp to --policy",
            )
        if not self._checked.can_replan_early and self.config.replan_beyond is not None:
            raise ConfigError(
                "replan_beyond compares motions with the snippets of sampled latents, which none of"
                " these policies has",
                "leave --replan-beyond out, or add lwd to --policy and sampled to --latent",
            )
        if (
            self.config.replan_beyond is None
            and self.config.replan_after != EvalConfig.replan_after
        ):
            raise ConfigError(
                "replan_after does nothing without replan_beyond",
                "add --replan-beyond, for example 0.5, or leave --replan-after out",
            )

    def _beyond_training(self, condition: PlannedCondition) -> str:
        """Say where a policy is followed for longer than its snippets are; "" elsewhere."""
        policy = self._open(condition)
        length, horizon = policy.snippet_length, policy.horizon(self._acting(condition))
        if length is None or not isinstance(horizon, int) or horizon <= length:
            return ""
        other = eval_models.trained_for(horizon, condition, self.config, self.context)
        return (
            f"warning: {condition.policy} follows every plan for {horizon} steps, but its model was"
            f" trained on snippets of {length}: beyond them it was not trained"
            + (f"; for {horizon} steps: {other}" if other else "")
        )

    def measure_all(self, output: RunInProgress) -> None:
        """Measure every condition that no other process measures, then what those have left."""
        records, left = output.checkpoints, list(self.conditions)
        lost: SimulatorError | None = None
        for wait in (False, True):
            begun, left = left, []
            for condition in begun:
                if wait:
                    self.context.progress.message(f"{condition.name}: another process measures it")
                with claimed(claim(records, condition.name), wait=wait) as is_ours:
                    try:
                        if is_ours:
                            self.measure(condition, records, output.path)
                        else:
                            left.append(condition)
                    except SimulatorError as error:
                        self.context.progress.message(error.message)
                        lost = lost or error
        if lost is not None:
            raise lost

    def measure_rest(self, run: Path) -> None:
        """Measure what no process has begun, beside the one that works in the run's directory."""
        records = run / CHECKPOINTS
        for condition in reversed(self.conditions):
            if (records / f"{condition.name}.json").exists():
                continue
            try:
                with claimed(claim(records, condition.name), without_locks=False) as is_ours:
                    # It may have been measured just before it was claimed.
                    if is_ours and not (records / f"{condition.name}.json").exists():
                        self.measure(condition, records, run)
            except FileNotFoundError:
                if run.exists():
                    raise
                return  # the other process has published it

    def measure(self, condition: PlannedCondition, records: Path, folder: Path) -> None:
        """Run one condition, unless a finished record of it is there.

        Args:
            condition: What to run.
            records: Directory for its record and for the journal of its episodes.
            folder: Directory below which its videos go.
        """
        log = self.context.progress.message
        path = records / f"{condition.name}.json"
        if path.exists():
            try:
                final = self._is_final(read_record(records, condition.name))
            except ArtifactError as error:
                final = False
                log(f"{condition.name} is measured again: {error.message}")
            if final:
                log(f"{condition.name}: already measured")
                return
        log(f"{condition.name}:")
        policy, acting = self._open(condition), self._acting(condition)
        plans = self._plans(condition)
        recording = self._recording(condition, plans, folder)
        batch_policy = policy.batch_policy(acting, self.config.num_envs)
        journal = EpisodeJournal(records / f"{condition.name}.journal", self.software)
        kept = len(journal.finished(plans))
        if kept:
            log(f"  {kept} of {len(plans)} episodes: already measured")
        found = _roll(condition, self, batch_policy, plans, recording, journal)
        episodes = found.episodes
        check_not_all_lost(condition.name, episodes)
        cost = partial(condition_cost, policy.cost(acting)) if policy.has_known_cost else None
        rows = result_rows(
            episodes,
            found.score,
            self._row_condition(condition),
            self._source_returns(episodes),
            cost,
        )
        success = rows[-1].success
        rate = f"success {success.value:.3f}" if success.n else "no episode"
        log(f"  {rate} [{success.low:.3f}, {success.high:.3f}] over {success.n} episodes")
        if failures := described_failures(condition.name, episodes):
            log(f"  {failures}")
        models = {kind: item.reference for kind, item in condition.artifacts.items()}
        result = ConditionResult(tuple(rows), episodes, models)
        write_record(path, {**result.to_json(), "software": self.software})
        for name, reason in (recording.failures() if recording else {}).items():
            log(f"  no video of {name}: {reason}")

    def _is_final(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record is by this software and lost no episode."""
        lost = any(row["errors"] for row in record["results"])
        return not lost and bool(record["software"] == self.software)

    def add_latency(self, folder: Path) -> None:
        """Time all conditions, one after the other in this process, and add it to their records.

        Conditions that differ in their perturbation alone are the same policy.
        """
        timed: dict[tuple[Any, ...], dict[str, Any]] = {}
        for condition in self.conditions:
            model = condition.model
            same = condition.policy, condition.latent, model and model.path, condition.horizon
            if same not in timed:
                timed[same] = self._latency(condition)
                self.context.progress.message(f"{condition.name}: {_milliseconds(timed[same])}")
            record = read_record(folder, condition.name)
            for row in record["results"]:
                row["cost"] = {**row["cost"], **timed[same]}
            write_record(folder / f"{condition.name}.json", record)

    def _latency(self, condition: PlannedCondition) -> dict[str, Any]:
        """Time a policy on the longest demonstration."""
        table, spec = self.data.episodes, self.data.spec
        index = int(table.length.argmax())
        start, length = int(table.start[index]), int(table.length[index])
        task = spec.env.tasks[max(0, int(table.task[index]))]
        label = spec.labels[max(0, int(table.label[index]))] if self.labels else ""
        plan = EpisodePlan(0, EVALUATION_SEED_START, task, label, demonstration=index)
        observations = {
            item.name: self.data.read(item.name, start, start + length)
            for item in spec.observations
        }
        policy = self._open(condition).batch_policy(self._acting(condition), 1)
        timings = time_policy(policy, plan, observations, self.device)
        return {**timings.summary(), "latency_threads": torch.get_num_threads()}

    def _plans(self, condition: PlannedCondition) -> list[EpisodePlan]:
        config = self.config
        count, seed, tasks = config.episodes, config.seed, config.task
        if condition.latent == ORACLE:
            return plan_demonstrations(
                self.data, count, seed, tasks, config.oracle_split, self.labels
            )
        return plan_episodes(self.data.spec.env, count, seed, tasks, self.labels)

    def _recording(
        self, condition: PlannedCondition, plans: Sequence[EpisodePlan], folder: Path
    ) -> Recording | None:
        count = self.config.video
        if not count:
            return None
        return Recording(
            folder / VIDEOS_FOLDER / condition.name,
            condition.name.replace("-", " "),
            first_episodes(plans, count),
            self.config.video_every or 0,
        )

    def _row_condition(self, condition: PlannedCondition) -> Condition:
        return trained_condition(
            condition.policy,
            self._open(condition),
            self._acting(condition),
            self.data.spec.env.adapter,
            latent=condition.latent,
            train_seed=condition.train_seed,
            perturbation=condition.perturbation,
        )

    def _source_returns(self, episodes: Sequence[EpisodeResult]) -> dict[int, float]:
        """Return the recorded return of every demonstration whose initial state was restored.

        It is that of the steps that an episode here may have.
        """
        if not self.data.has_rewards:
            return {}
        table, returns = self.data.episodes, {}
        limit = self.config.max_steps or self.data.spec.env.max_steps
        for index in {item.plan.demonstration for item in episodes} - {-1}:
            start, length = int(table.start[index]), int(table.length[index])
            rewards = self.data.read("reward", start, start + min(length, limit or length))
            returns[index] = float(rewards.sum(dtype="float64"))
        return returns

    @property
    def protocol(self) -> str:
        """How the evaluation was made, in one sentence."""
        config = self.config
        per = "task and label" if self.labels else "task"
        magnitudes = ", ".join(f"{item:g}" for item in config.perturbation)
        perturbed = (
            f"perturbations of magnitude {magnitudes} with probability"
            f" {config.perturbation_probability:g} per step"
            if any(config.perturbation)
            else "no perturbations"
        )
        said = []
        if config.warm_start:
            fraction = f"{100 * config.warm_start:g} % of the denoising steps (warm start)"
            said.append(f"re-plans after an episode's first run {fraction}")
        if (rate := config.temporal_ensemble) is not None:
            said.append(f"chunks are averaged with the rate {rate:g} (temporal ensemble)")
        if config.inpainting:
            said.append(f"chunks keep to the previous one (inpainting {config.inpainting:g})")
        if config.guidance != 1:
            said.append(f"guidance {config.guidance:g}")
        if (beyond := config.replan_beyond) is not None:
            said.append(f"re-plans beyond {beyond:g} after {config.replan_after} steps")
        settings = "".join(f" {item};" for item in said)
        return (
            f"{config.episodes} episodes per {per} from evaluation seeds {config.seed} to"
            f" {config.seed + config.episodes - 1}; 'oracle' instead restores the initial states of"
            f" recorded demonstrations (split: {config.oracle_split}; at most as many);"
            f" {self._horizons}; {perturbed};{settings} success at any step;"
            " 95 % Wilson intervals; EMA weights"
        )

    @property
    def _horizons(self) -> str:
        if self.config.is_grid and not self.config.one_model:
            return "one model per horizon and training seed"
        texts = []
        for condition in self.conditions:
            policy = self._open(condition)
            length, horizon = policy.snippet_length, policy.horizon(self._acting(condition))
            if length is None:
                continue
            trained = "" if horizon == length else f" (the model was trained on {length} steps)"
            texts.append(f"action horizon {horizon}{trained}")
        return ", ".join(sorted(set(texts))) or "no re-planning"


def _roll(
    condition: PlannedCondition,
    evaluation: _Evaluation,
    policy: BatchPolicy,
    plans: Sequence[EpisodePlan],
    recording: Recording | None,
    journal: EpisodeJournal,
) -> RolloutResult:
    config = evaluation.config
    return rollout(
        policy,
        evaluation.data.spec.env,
        plans,
        num_envs=config.num_envs,
        workers=config.processes,
        max_steps=config.max_steps,
        perturbation=condition.perturbation,
        perturbation_probability=config.perturbation_probability,
        timeout=config.timeout,
        progress=evaluation.context.progress,
        recording=recording,
        journal=journal,
        name=condition.policy,
    )


def _check_environment(config: EvalConfig, data: SnippetStore, context: StageContext) -> None:
    """Check that the data names an environment that can be built and fits the data."""
    env = data.spec.env
    tasks = config.task or env.tasks
    if not env.adapter or not tasks:
        missing = f"no task of '{env.adapter}'" if env.adapter else "no environment to evaluate in"
        raise ConfigError(f"the data names {missing}", checks.NAME_ENVIRONMENT)
    check_tasks(tasks, env.tasks, f"environment '{env.adapter}'")
    if config.policy != (LWD,) or config.latent != (ORACLE,):  # which starts so on purpose
        checks.check_fresh_seeds(data.episodes.seed, config.seed, config.episodes)
    if config.video:
        context.progress.message("trying a video frame")
        policy = RandomPolicy(data.spec.action, 1)
        checks.check_video(policy, env, tasks[0], timeout=config.timeout)
    checks.check_compatible(data.spec, env, tasks[0], (config.max_steps, max(config.perturbation)))
    if text := checks.warn_of_ignored_seed(env, tasks[0]):
        context.progress.message(text)


def _check_lost_episodes(errors: Sequence[str], artifact: Artifact) -> None:
    if errors:
        raise SimulatorError(
            f"{len(errors)} episodes were lost to simulator errors: {reasons_of_loss(errors)}",
            f"they count neither as success nor as failure; run it again. Records: {artifact.path}",
        )


def _videos(folder: Path, condition: PlannedCondition) -> list[str]:
    videos = sorted((folder / VIDEOS_FOLDER / condition.name).glob("*.mp4"))
    return [path.relative_to(folder).as_posix() for path in videos]


def _publish_records(
    conditions: Sequence[PlannedCondition], output: RunInProgress
) -> tuple[list[dict[str, Any]], list[str]]:
    """Copy what was measured into the artifact; return all result rows, and errors of episodes."""
    folder, rows, lost = output.path / EPISODES_FOLDER, [], []
    folder.mkdir(exist_ok=True)
    for condition in conditions:
        record = read_record(output.checkpoints, condition.name)
        rows += record["results"]
        lost += [item["error"] for item in record["episodes"] if item["error"]]
        write_durably(folder / f"{condition.name}.json", text_of_record(record))
    return rows, lost


def _milliseconds(timed: Mapping[str, Any]) -> str:
    step, worst, replan = (timed[f"latency_{name}_ms"] for name in ("step", "step_p99", "replan"))
    parts = [] if step is None else [f"{step:.3g} ms per step (99 %: {worst:.3g} ms)"]
    parts += [] if replan is None else [f"{replan:.3g} ms per re-plan"]
    return ", ".join(parts)
