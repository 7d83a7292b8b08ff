"""Does a decoded snippet reproduce the recorded states, step by step from its own initial state?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lwdctl.analysis import plotting
from lwdctl.analysis.analyses import AnalyzeReconstructionConfig
from lwdctl.analysis.evaluations import SUCCESS, value_of
from lwdctl.analysis.resample import Bootstrap, Pair, States, Values, ratios, success_estimate
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table, flatten_estimate
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.seeding import generator
from lwdctl.data.batches import SnippetBatches
from lwdctl.evaluation.results import Estimate
from lwdctl.evaluation.snippet_episodes import (
    SnippetEpisodes,
    draw_snippets,
    plan_snippets,
    recorded_states,
)
from lwdctl.evaluation.traced import (
    GivenLatents,
    RecordedActions,
    TracedEpisodes,
    check_environment,
    check_guidance,
    count_lost,
    trace,
)
from lwdctl.methods.lwd import MEAN, ORACLE, SAMPLED, TrainedLwd
from lwdctl.methods.method import Acting
from lwdctl.models.vae import PolicyVae
from lwdctl.policies.latent_source import ReplanRequest
from lwdctl.policies.policy import BatchPolicy
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy

Index = npt.NDArray[np.int64]
Measures = Mapping[str, tuple[Estimate, float]]
"""Name of an error to its mean over snippets and its median."""

SNIPPETS, STEPS = "reconstruction", "reconstruction_steps"
NORMALIZED = "Normalized squared error"
RECORDED = "recorded actions"
MEAN_SNIPPETS = 1024
"""Training snippets whose encoded latents make the mean latent."""
_BATCH = 64
_MIN_DRAWN = 1e-9
"""Drawn where errors are exactly zero, which a logarithmic axis cannot show."""
ERROR_TEXT = (
    "Squared error between the observation that a policy reached and the one recorded at the same"
    " step. 'Squared' sums over components in environment units, so that the component with the"
    " largest unit dominates. 'Normalized' divides each component by its standard deviation over"
    " the training split and takes the mean: two unrelated states have an error of about 2. 'Final'"
    " is at a snippet's last recorded state, 'mean' is over the states after its actions. An"
    " episode that ended early is padded with its last state. Intervals: 95 %, bootstrap over the"
    " demonstrations that snippets lie in; none where all lie in one. 'Recorded actions', replayed"
    " in open loop, give the smallest possible error: that of the initial state and the simulator."
)


@dataclass(frozen=True)
class Errors:
    """Squared errors of one policy.

    Attributes:
        squared: (snippet, time) sum over observation components, in environment units squared.
        normalized: (snippet, time) mean over components, each divided by its standard deviation
            over the training split. Step 0 is the initial state, before any action. NaN where
            nothing was recorded, or where the episode was lost to a simulator error.
    """

    squared: Values
    normalized: Values

    def by_snippet(self) -> dict[str, Values]:
        """Return the error at the last recorded step and the mean over steps (snippet,)."""
        return {
            f"{name}_{unit}": reduce(values)
            for unit, values in (("normalized", self.normalized), ("squared", self.squared))
            for name, reduce in (("final", _final), ("mean", _mean_over_steps))
        }


def _final(values: Values) -> Values:
    last = values.shape[1] - 1 - np.argmax(~np.isnan(values)[:, ::-1], axis=1)
    found: Values = values[np.arange(len(values)), last]
    return found


def _mean_over_steps(values: Values) -> Values:
    after = values[:, 1:]  # the initial state is before any action
    known = ~np.isnan(after)
    return ratios(np.where(known, after, 0.0).sum(axis=1), known.sum(axis=1))


def squared_errors(reached: Values, recorded: Values, valid: Index, scale: Values) -> Errors:
    """Compare states reached with states recorded.

    Args:
        reached: (snippet, time, obs), NaN where an episode was lost.
        recorded: (snippet, time, obs), NaN where nothing was recorded.
        valid: (snippet,) number of actions of each snippet that are not padding.
        scale: (obs,) standard deviation of each component.
    """
    difference = reached - recorded
    difference[np.arange(recorded.shape[1]) > valid[:, None]] = np.nan
    normalized = np.square(difference / scale).mean(axis=2)
    return Errors(np.square(difference).sum(axis=2), normalized)


class SnippetRunner:
    """Runs policies from the initial states of the same snippets.

    Raises:
        ConfigError: The split has no demonstrations.
        ArtifactError: A snippet's initial state cannot be reached.
    """

    def __init__(
        self,
        config: AnalyzeReconstructionConfig,
        snippets: SnippetStore,
        policy: TrainedLwd,
        progress: Progress,
    ) -> None:
        if not len(snippets.episodes.of_split(config.split)):
            raise ConfigError(f"the data has no {config.split} demonstrations", "use --split all")
        self._config, self._policy, self._progress = config, policy, progress
        self._env, self._steps = snippets.spec.env, policy.snippet_length
        self._training = policy.demonstrations(snippets, "train")
        self._batches = self._training.of_split(config.split)
        drawn = draw_snippets(self._batches, snippets, config.count, config.seed)
        self.starts = plan_snippets(snippets, *drawn, self._steps, config.seed)
        keys = policy.observation_keys
        self._recorded = recorded_states(snippets, *drawn, keys, self._steps)

    def run(self, group: str) -> TracedEpisodes:
        """Run one group: `RECORDED`, or a latent source."""
        if group == RECORDED:
            batch = self._batches.cut(self.starts.episodes, self.starts.offsets)
            return self._trace(RecordedActions(batch.actions.cpu().numpy()), group)
        latents = {ORACLE: self.encode, MEAN: self._mean, SAMPLED: self._sampled}[group]
        return self.decode(self._policy.vae, latents(), group)

    def decode(self, vae: PolicyVae, latents: Tensor, title: str) -> TracedEpisodes:
        """Decode latents (snippet, latent) and run one network per snippet to its end."""
        policy = ReplanningPolicy(GeneratedNetworks(vae), GivenLatents(latents), None)
        return self._trace(policy, title)

    def encode(self, vae: PolicyVae | None = None) -> Tensor:
        """Return the snippets' own latents (snippet, latent): posterior means."""
        starts = self.starts
        return _encode(vae or self._policy.vae, self._batches, starts.episodes, starts.offsets)

    def _mean(self) -> Tensor:
        episodes, offsets = self._training.every()
        drawn = generator("mean latent").permutation(len(episodes))[:MEAN_SNIPPETS]
        latents = _encode(self._policy.vae, self._training, episodes[drawn], offsets[drawn])
        return latents.mean(0, keepdim=True).expand(len(self.starts.plans), -1).contiguous()

    def _sampled(self) -> Tensor:
        """Sample latents conditioned on the recorded observations at the snippets' starts."""
        starts = self.starts
        source = self._policy.latents(Acting.of(self._config, latent=SAMPLED))
        state = self._batches.history(starts.episodes, starts.offsets, source.history)
        first = np.zeros(len(starts.plans), dtype=np.int64)
        return source.latents(ReplanRequest(starts.plans, first, starts.offsets, state))

    def _trace(self, policy: BatchPolicy, title: str) -> TracedEpisodes:
        self._progress.message(f"{title}:")
        keys, plans = self._policy.observation_keys, self.starts.plans
        return trace(policy, self._env, keys, plans, self._steps, self._config, self._progress)

    def errors(self, episodes: TracedEpisodes) -> Errors:
        """Compare the states that episodes reached with the recorded ones."""
        scale: Values = self._policy.vae.observation.scale.cpu().double().numpy()
        reached = episodes.padded(self._steps)
        return squared_errors(reached, self._recorded, self.starts.valid, scale)


def _encode(vae: PolicyVae, batches: SnippetBatches, episodes: Index, offsets: Index) -> Tensor:
    means = []
    with torch.no_grad():
        for start in range(0, len(episodes), _BATCH):
            part = slice(start, start + _BATCH)
            means.append(vae.encode(batches.cut(episodes[part], offsets[part]))[0])
    return torch.cat(means)


def analyze_reconstruction(
    config: AnalyzeReconstructionConfig,
    *,
    snippets: SnippetStore,
    policy: TrainedLwd,
    snapshots: Iterable[tuple[int, PolicyVae]] = (),
    progress: Progress | None = None,
) -> Findings:
    """Encode snippets, decode them, and run the networks from the snippets' initial states.

    `snapshots` are training steps, each with the VAE that has the EMA weights of that step.

    Raises:
        ConfigError: The data has no environment, or no demonstration in the split.
        ArtifactError: A snippet's initial state cannot be reached.
    """
    progress = progress or TqdmProgress()
    check_environment(snippets.spec.env)
    check_guidance(config, samples=SAMPLED in config.latent)
    if SAMPLED in config.latent:
        policy.check(Acting.of(config, latent=SAMPLED))
    runner = SnippetRunner(config, snippets, policy, progress)
    groups = {name: runner.run(name) for name in (RECORDED, *dict.fromkeys(config.latent))}
    earlier = {
        step: runner.decode(vae, runner.encode(vae), _after(step)) for step, vae in snapshots
    }
    runs = Reconstructions(
        starts=runner.starts,
        split=config.split,
        errors={name: runner.errors(one) for name, one in groups.items()},
        episodes=groups,
        snapshots={step: runner.errors(one) for step, one in earlier.items()},
    )
    every = groups | {_after(step): one for step, one in earlier.items()}
    return compose(runs, count_lost({name: one.results for name, one in every.items()}))


def _after(step: int) -> str:
    return f"after {step} training steps"


@dataclass(frozen=True)
class Reconstructions:
    """Everything that was run.

    Attributes:
        split: Split that the snippets were drawn from.
        errors: Group to its errors.
        episodes: Group to its episodes.
        snapshots: Training step to the errors of oracle latents with the weights of that step.
    """

    starts: SnippetEpisodes
    split: str
    errors: Mapping[str, Errors]
    episodes: Mapping[str, TracedEpisodes]
    snapshots: Mapping[int, Errors]

    @property
    def score(self) -> str:
        """Name of the environment's score."""
        return next(iter(self.episodes.values())).score

    def outcomes(self, group: str, name: str = SUCCESS) -> Values:
        """Return (snippet,) success as 0 and 1, or a metric; NaN for lost episodes.

        Returns are all NaN where the policy aborted an episode, as in evaluations.
        """
        results = self.episodes[group].results
        if name == "return" and any(one.policy_failure for one in results):
            return np.full(len(results), np.nan)
        return np.array([value_of(one, name) for one in results])

    @cached_property
    def oracle_minus_sampled(self) -> Estimate | None:
        """The paired difference of success rates, None where one of them was not run."""
        if not {ORACLE, SAMPLED} <= set(self.episodes):
            return None
        first, second = self.outcomes(ORACLE), self.outcomes(SAMPLED)
        known = ~np.isnan(first - second)
        if not known.any():
            return Estimate(0.0, -1.0, 1.0, 0)
        first, second = first[known], second[known]
        states = self.demonstrations.of(known)
        found = Pair(first[None], second[None], states).success_estimate()
        return replace(found, value=float((first - second).mean()))

    @cached_property
    def demonstrations(self) -> States:
        """Snippets as episodes whose common initial state is the demonstration they lie in."""
        unit = self.starts.episodes.astype(np.intp)
        return States(np.zeros_like(unit), unit)


def compose(runs: Reconstructions, lost: Mapping[str, int]) -> Findings:
    """Return sections, figures, tables of snippets and steps, and the summary numbers."""
    episodes = runs.starts.episodes
    bootstrap = Bootstrap(episodes, ("reconstruction bootstrap", len(np.unique(episodes))))
    measures = {name: measure(one, bootstrap) for name, one in runs.errors.items()}
    after = {step: measure(one, bootstrap) for step, one in runs.snapshots.items()}
    curves = {
        name: (bootstrap.curve(one.normalized), bootstrap.curve(one.squared))
        for name, one in runs.errors.items()
    }
    sections = [_start_section(runs), _error_section(measures, curves)]
    if after:
        sections.append(_training_section(after))
    sections.append(_success_section(runs, bootstrap))
    columns = (
        "policy", "step", "snippets", "normalized", "normalized_low", "normalized_high", "squared",
        "squared_low", "squared_high",
    )  # fmt: skip
    steps = (
        (name, step, pair[0].n, *pair)
        for name, both in curves.items()
        for step, pair in enumerate(zip(*both, strict=True))
    )
    return Findings(
        title="Reconstruction of recorded snippets",
        sections=sections,
        tables={SNIPPETS: _snippet_table(runs), STEPS: Table.of(columns, steps)},
        summary=_summary(runs, measures, after),
        lost=lost,
    )


def measure(errors: Errors, bootstrap: Bootstrap) -> Measures:
    """Return the means of the errors over snippets, with their medians."""
    found = {}
    for name, values in errors.by_snippet().items():
        known = values[~np.isnan(values)]
        median = float(np.median(known)) if known.size else np.nan
        found[name] = bootstrap.estimate(values), median
    return found


def _start_section(runs: Reconstructions) -> Section:
    starts, initial = runs.starts, runs.errors[RECORDED].normalized[:, 0]
    rows = []
    for way, count in Counter(starts.ways).items():
        errors = initial[[one == way for one in starts.ways]]
        rows.append((way, count, float(np.nanmean(errors)), float(np.nanmax(errors))))
    text = (
        f"{len(starts.plans)} snippets of {len(set(starts.episodes.tolist()))} demonstrations"
        f" ({runs.split} split), {starts.valid.min()} to {starts.valid.max()} recorded steps each."
        " Every policy starts from the same states. 'Initial error' is the normalized squared error"
        " of the initial state itself. Observations need not determine the whole state: PushT's"
        " contain no velocities, which are then zero."
    )
    columns = ("initial state", "snippets", "mean initial error", "largest initial error")
    return Section("Initial states of the snippets", text, table=Table.of(columns, rows))


def _error_section(
    measures: Mapping[str, Measures], curves: Mapping[str, Sequence[Sequence[Estimate]]]
) -> Section:
    rows = (
        (name, error.replace("_", " "), *numbers)
        for name, found in measures.items()
        for error, numbers in found.items()
    )
    table = Table.of(("policy", "error", "mean", "low", "high", "median"), rows)
    # The initial state's error is in the table: before any action it is almost zero.
    panels = {
        label: {name: both[place][1:] for name, both in curves.items()}
        for place, label in enumerate((NORMALIZED, "Squared error (environment units)"))
    }
    places = range(1, len(curves[RECORDED][0]))
    figure = draw_errors(8.8, panels, "Step of the snippet", places)
    title = "Error against the recorded states"
    return Section(title, ERROR_TEXT, "error-by-step", table, figure)


def _training_section(after: Mapping[int, Measures]) -> Section:
    names = {"final_normalized": "at the last step", "mean_normalized": "mean over steps"}
    rows = (
        (step, *(one for name in names for one in found[name])) for step, found in after.items()
    )
    ends = ("low", "high", "median")
    columns = ("training steps", "final normalized", *ends, "mean normalized", *ends)
    text = (
        "The same snippets, encoded and decoded with the EMA weights of several training steps of"
        " the VAE. One model: the intervals do not include the variance over training seeds."
    )
    curves = {label: [found[name][0] for found in after.values()] for name, label in names.items()}
    title, steps = "Training steps of the VAE", list(after)
    figure = draw_errors(4.4, {NORMALIZED: curves}, title, steps, marker="o")
    table = Table.of(columns, rows)
    return Section("Error during training", text, "error-by-update", table, figure)


def _success_section(runs: Reconstructions, bootstrap: Bootstrap) -> Section:
    rows = []
    for name in runs.episodes:
        success = success_estimate(runs.outcomes(name)[None], runs.demonstrations)
        score = bootstrap.estimate(runs.outcomes(name, runs.score))
        rows.append((name, success.n, success, score))
    text = (
        "Success and score within the steps of the snippet and one more, from the same states;"
        " success with Wilson's 95 % interval, for fewer snippets where those of one demonstration"
        " have the same outcome (design effect). What 'oracle' loses is lost by the VAE; what"
        " 'sampled' loses beyond that is lost by the diffusion model."
    )
    gap = runs.oracle_minus_sampled
    if gap:
        text += (
            f" Oracle minus sampled: {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], on the"
            " same snippets; those of one demonstration are resampled together."
        )
    columns = ("policy", "episodes", "success", "low", "high", runs.score, "low", "high")
    return Section("Success from the same states", text, table=Table.of(columns, rows))


def _known_mean(values: Values) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _summary(
    runs: Reconstructions, measures: Mapping[str, Measures], after: Mapping[int, Measures]
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "snippets": len(runs.starts.plans),
        "initial_error": float(np.nanmean(runs.errors[RECORDED].normalized[:, 0])),
    }
    for name, found in measures.items():
        summary[name] = _flatten(found) | {
            "success": _known_mean(runs.outcomes(name)),
            runs.score: _known_mean(runs.outcomes(name, runs.score)),
        }
    gap = runs.oracle_minus_sampled
    if gap:
        summary["oracle minus sampled"] = flatten_estimate("success_difference", gap)
    if after:
        summary["after_updates"] = {
            str(step): _flatten({key: one for key, one in found.items() if "normalized" in key})
            for step, found in after.items()
        }
    return summary


def _flatten(measures: Measures) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, (mean, median) in measures.items():
        found |= flatten_estimate(name, mean) | {f"{name}_median": median}
    return found


def _snippet_table(runs: Reconstructions) -> Table:
    starts = runs.starts
    rows = (
        (
            name, *place, initial, *values, int(result.success),
            "" if result.error else result.measured[runs.score], result.policy_failure,
            result.error,
        )
        for name, errors in runs.errors.items()
        for place, initial, values, result in zip(
            zip(starts.episodes, starts.offsets, starts.valid, starts.ways, strict=True),
            errors.normalized[:, 0], zip(*errors.by_snippet().values(), strict=True),
            runs.episodes[name].results, strict=True,
        )
    )  # fmt: skip
    columns = (
        "policy", "episode", "offset", "steps", "initial_state", "initial_error",
        *runs.errors[RECORDED].by_snippet(), "success", runs.score, "policy_failure", "error",
    )  # fmt: skip
    return Table.of(columns, rows)


def draw_errors(
    width: float,
    panels: Mapping[str, Mapping[str, Sequence[Estimate]]],
    x_label: str,
    places: Sequence[int],
    **style: str,
) -> Figure:
    """Draw errors on logarithmic axes, which cannot show zero.

    `panels` has the curves of each panel by name, under the label of its vertical axis; `places`
    are the horizontal positions of a curve's points.
    """
    figure, (row,) = plotting.new_figure(width, 3.6, columns=len(panels))
    for axes, (y_label, curves) in zip(row, panels.items(), strict=True):
        for index, (name, curve) in enumerate(curves.items()):
            ends = np.maximum([(one.value, one.low, one.high) for one in curve], _MIN_DRAWN)
            shown = [Estimate(mean, low, high, 0) for mean, low, high in ends.tolist()]
            color = plotting.series_style(index)["color"]
            plotting.draw_curve(axes, places, shown, color=color, label=name, **style)
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    note = f"Bands: 95 % intervals. Values below {_MIN_DRAWN:g} are drawn at it."
    plotting.finish(figure, note)
    return figure
