"""Is generated behavior as diverse as the demonstrations?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from lwdctl.analysis import diversity_measures as measures
from lwdctl.analysis import plotting
from lwdctl.analysis.analyses import AnalyzeDiversityConfig
from lwdctl.analysis.diversity_measures import Index, Modes, StateVariance
from lwdctl.analysis.resample import Values
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table, flatten_estimate
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.core.seeding import generator
from lwdctl.core.suggest import did_you_mean
from lwdctl.evaluation.results import Estimate
from lwdctl.evaluation.snippet_episodes import plan_snippets, recorded_states
from lwdctl.evaluation.traced import check_environment, check_guidance, count_lost, pad, trace
from lwdctl.methods.lwd import SAMPLED, TrainedLwd
from lwdctl.methods.method import Acting

TRAJECTORIES = "diversity"
MIN_DEMONSTRATIONS = 2
MAX_COMPONENTS = 8
DEMONSTRATIONS = "demonstrations"
VARIANCE_TEXT = (
    "Variance of states over trajectories at the same step, each component divided by its standard"
    " deviation over the training split, mean over components; the mean over steps is over at most"
    f" {measures.MAX_STEPS} of them, the initial state among them. All groups start from the same"
    " recorded states, with one trajectory of each (the first draw), so that the initial states add"
    " the same variance to every group. 'Ratio' divides by the mean variance of the demonstrations:"
    " below 1 a group is less diverse. Intervals: 95 %, bootstrap over initial states."
)
MODES_TEXT = (
    "One trajectory from every initial state. 'Total variation' is the distance between a group's"
    " fractions of modes and the demonstrations': 0 for equal fractions, 1 where no mode is shared."
    " 'Chance level' is the 95 % quantile of that distance for equally many trajectories drawn from"
    " the demonstrations' fractions. 'Effective number' is the exponential of the entropy: the"
    " group is as diverse as so many equally frequent modes. 'Mode agreement' is the fraction of"
    " trajectories classified as the same mode as the demonstration from the same initial state"
    " (95 % Wilson interval); its chance level is that of independent modes with the same"
    " fractions."
)
COMPONENTS_TEXT = (
    "Each component's fraction of its group's variance, and its variance divided by that of the"
    f" demonstrations, for the (at most {MAX_COMPONENTS}) components with the largest fraction in"
    " any group. A component that hardly varies in the data is scaled up with the others, so that a"
    " policy that moves it can dominate the ratio above."
)
DRAWS_TEXT = (
    "Several policies sampled for the same initial state: the fraction of the variance that lies"
    " between them (0: the initial state determines everything; 1: it determines nothing), and how"
    " often two of them have the same mode. Chance level: how often two from different initial"
    " states do. Similar demonstrations: the fraction of the"
    f" {measures.NEIGHBORS} demonstrations with the nearest initial states (in normalized"
    " observations, all splits) that have the mode of the one from this state. Where the interval"
    " of the difference lies above 0, sampled policies are less diverse than demonstrations,"
    " provided that those states are similar indeed. Intervals: 95 %, bootstrap over initial"
    " states, which takes their values as independent."
)

MODE_COLUMNS = {
    "effective number": "effective_modes",
    "total variation": "mode_total_variation",
    "chance level": "mode_total_variation_chance",
    "mode agreement": "mode_agreement",
    "low": "mode_agreement_low",
    "high": "mode_agreement_high",
    "chance level of agreement": "mode_agreement_chance",
}
DRAW_COLUMNS = {
    "fraction of variance": "within_state_variance",
    "low": "within_state_variance_low",
    "high": "within_state_variance_high",
    "mode agreement": "draw_agreement",
    "agreement, low": "draw_agreement_low",
    "agreement, high": "draw_agreement_high",
    "chance level": "draw_agreement_chance",
    "similar demonstrations": "similar_demonstrations_agreement",
    "difference": "draw_agreement_difference",
    "difference, low": "draw_agreement_difference_low",
    "difference, high": "draw_agreement_difference_high",
}
"""Columns of tables and the summary numbers that they show."""
Numbers = Mapping[str, Mapping[str, Any]]
"""Group to its summary numbers."""


@dataclass(frozen=True)
class Demonstrations:
    """The recorded trajectories of one task.

    Attributes:
        episodes: (demonstration,) store index.
        category: (demonstration,) index of the label, None where modes are not the labels.
        left_out: Number of demonstrations without a label, or with one that no other has, where
            modes are the labels.
    """

    task: str
    episodes: Index
    category: Index | None
    left_out: int = 0


class DiversityRuns:
    """Policies run from recorded initial states, and the demonstrations from the same states.

    Attributes:
        chosen: (start,) index of the demonstration with that initial state among those of the task.
        demonstrated: (start, time, obs) its states, normalized and padded with the last state.
        ended: Number of chosen demonstrations that ended before the last step.
        states: Latent source to the states (start, draw, time, obs) that its policies reached,
            normalized and padded; NaN where an episode was lost to a simulator error.
        lost: Latent source to the number of those episodes.
        components: (obs,) name of each component.
        horizon: Steps executed per re-plan, or `"episode"`.

    Raises:
        ConfigError: The data has no environment, no such task, or too few demonstrations.
        ArtifactError: A demonstration's initial state cannot be restored.
    """

    def __init__(
        self,
        config: AnalyzeDiversityConfig,
        snippets: SnippetStore,
        policy: TrainedLwd,
        progress: Progress,
    ) -> None:
        self.config, self.condition = config, policy.condition
        env, keys = snippets.spec.env, policy.observation_keys
        check_environment(env)
        check_guidance(config, samples=SAMPLED in config.latent)
        latents: dict[str, None] = dict.fromkeys(config.latent)
        acting = {latent: Acting.of(config, latent=latent) for latent in latents}
        for one in acting.values():
            policy.check(one)
        self.horizon = policy.horizon(next(iter(acting.values())))
        self.components = [
            f"{key}[{place}]" if size > 1 else key
            for key, size in zip(keys, snippets.spec.sizes(keys), strict=True)
            for place in range(size)
        ]
        self.demonstrations = find_demonstrations(snippets, config)
        episodes = self.demonstrations.episodes
        scale: Values = policy.vae.observation.scale.cpu().double().numpy()
        lengths = snippets.episodes.length[episodes]
        steps = config.max_steps or int(lengths.min())
        recorded = recorded_states(snippets, episodes, np.zeros_like(episodes), keys, steps)
        states = np.stack([pad(row[~np.isnan(row[:, 0])], steps) / scale for row in recorded])
        self.modes = _modes(self.demonstrations, states, snippets.spec.labels, config)
        self.chosen = draw_initial_states(self.demonstrations, snippets, config)
        if len(self.chosen) < config.count:
            progress.message(f"the data has only {len(self.chosen)} initial states to run from")
        self.demonstrated, self._initial = states[self.chosen], states[:, 0]
        self.ended = int((lengths[self.chosen] < steps).sum())
        self.states: dict[str, Values] = {}
        results = {}
        for latent, one in acting.items():
            progress.message(f"{latent}:")
            # The draws of one initial state side by side.
            rows = np.repeat(episodes[self.chosen], config.draws if latent == SAMPLED else 1)
            plans = plan_snippets(snippets, rows, np.zeros_like(rows), steps, config.seed).plans
            batch = policy.batch_policy(one, min(config.num_envs, len(plans)))
            traced = trace(batch, env, keys, plans, steps, config, progress)
            shape = (len(self.chosen), -1, steps + 1, len(scale))
            self.states[latent] = (traced.padded(steps) / scale).reshape(shape)
            results[latent] = traced.results
        self.lost = count_lost(results)

    @cached_property
    def complete(self) -> npt.NDArray[np.bool_]:
        """(start,) whether no group lost an episode from it."""
        lost = [np.isnan(states).any(axis=(1, 2, 3)) for states in self.states.values()]
        complete: npt.NDArray[np.bool_] = ~np.any(lost, axis=0)
        return complete

    @cached_property
    def steps(self) -> Index:
        """The steps at which the variance is measured."""
        last = self.demonstrated.shape[1] - 1
        return np.unique(np.linspace(0, last, measures.MAX_STEPS).round().astype(np.int64))

    @cached_property
    def classified(self) -> dict[str, Index]:
        """Group to the modes (start, draw) of its trajectories; demonstrations have one draw."""
        chosen = self.chosen[self.complete]
        found = {DEMONSTRATIONS: self.modes.demonstrated[chosen][:, None]}
        for name, every in self.states.items():
            states = every[self.complete]
            draws = states.shape[1]
            flat = states.reshape(-1, *states.shape[2:])
            modes = self.modes.classify(measures.features(flat), np.repeat(chosen, draws))
            found[name] = modes.reshape(-1, draws)
        return found

    @cached_property
    def variances(self) -> dict[str, StateVariance]:
        """Group to the variance of its first draws."""
        first = {
            name: states[self.complete][:, 0][:, self.steps] for name, states in self.states.items()
        }
        demonstrated = self.demonstrated[self.complete][:, self.steps]
        return self.bootstrap.variances({DEMONSTRATIONS: demonstrated, **first}, DEMONSTRATIONS)

    @cached_property
    def within_state(self) -> dict[str, Estimate]:
        """Group with several draws to the fraction of its variance between draws of one state."""
        return {
            name: self.bootstrap.within_state_fraction(states[self.complete][:, :, self.steps])
            for name, states in self.states.items()
            if states.shape[1] > 1
        }

    @cached_property
    def similar_agreement(self) -> Values:
        """(start,) how often demonstrations from similar initial states have its mode."""
        chosen = self.chosen[self.complete]
        return measures.similar_agreement(self._initial, self.modes.demonstrated, chosen)

    @cached_property
    def bootstrap(self) -> measures.StateBootstrap:
        """The bootstrap over the initial states."""
        return measures.StateBootstrap(int(self.complete.sum()), self.config.seed)


def analyze_diversity(
    config: AnalyzeDiversityConfig,
    *,
    snippets: SnippetStore,
    policy: TrainedLwd,
    progress: Progress | None = None,
) -> Findings:
    """Run policies from recorded initial states and compare their diversity.

    Raises:
        ConfigError: The data has no environment, no such task, or too few demonstrations.
        ArtifactError: A demonstration's initial state cannot be restored.
        SimulatorError: Too many episodes were lost to simulator errors.
    """
    return compose(DiversityRuns(config, snippets, policy, progress or TqdmProgress()))


def find_demonstrations(store: SnippetStore, config: AnalyzeDiversityConfig) -> Demonstrations:
    """Return the demonstrations of the task, with their labels where these define the modes.

    Raises:
        ConfigError: No such task, several to choose from, or too few demonstrations.
    """
    names, table = store.spec.env.tasks, store.episodes
    tasks = tuple(names[index] for index in np.unique(table.task))
    if config.task and config.task not in tasks:
        raise ConfigError(
            f"'{config.task}' is no task of this data", did_you_mean(config.task, tasks)
        )
    if not config.task and len(tasks) > 1:
        raise ConfigError(
            f"the data has {len(tasks)} tasks, and diversity is measured within one",
            f"choose one: --task {shlex.quote(tasks[0])}",
        )
    task = config.task or tasks[0]
    of_task = np.flatnonzero(np.asarray(table.task) == names.index(task))
    label = np.asarray(table.label)[of_task].astype(np.int64)
    found, counts = np.unique(label[label >= 0], return_counts=True)
    usable = np.isin(label, found[counts >= MIN_DEMONSTRATIONS])
    if not config.modes and len(np.unique(label[usable])) > 1:
        return Demonstrations(task, of_task[usable], label[usable], int((~usable).sum()))
    if len(of_task) < 2 * MIN_DEMONSTRATIONS:
        raise ConfigError(
            f"{len(of_task)} demonstrations of '{task}' are too few to find modes;"
            f" {2 * MIN_DEMONSTRATIONS} are needed",
            "ingest more demonstrations",
        )
    if (config.modes or 0) >= len(of_task):
        raise ConfigError(
            f"{len(of_task)} demonstrations of '{task}' cannot be clustered into"
            f" {config.modes} modes",
            f"--modes takes 2 to {len(of_task) - 1}",
        )
    return Demonstrations(task, of_task, None)


def draw_initial_states(
    demonstrations: Demonstrations, store: SnippetStore, config: AnalyzeDiversityConfig
) -> Index:
    """Draw initial states: (start,) indices among the demonstrations, in order.

    Raises:
        ConfigError: Fewer than two demonstrations in the split.
    """
    episodes, category = demonstrations.episodes, demonstrations.category
    order = generator("diversity starts", config.seed).permutation(len(episodes))
    if config.split != "all":
        order = order[np.isin(episodes[order], store.episodes.of_split(config.split))]
    if len(order) < MIN_DEMONSTRATIONS:
        raise ConfigError(
            f"the data has {len(order)} {config.split} demonstrations of '{demonstrations.task}'",
            "use --split all",
        )
    if category is not None:
        # Sorted by quantile within the label: every beginning of the order is stratified.
        quantile = np.empty(len(episodes))
        for one in np.unique(category[order]):
            members = order[category[order] == one]
            quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(quantile[order], kind="stable")]
    return np.sort(order[: config.count])


def _modes(
    demonstrations: Demonstrations,
    states: Values,
    labels: tuple[str, ...],
    config: AnalyzeDiversityConfig,
) -> Modes:
    rows = measures.features(states)
    if demonstrations.category is None:
        return measures.ClusteredModes(rows, config.modes, config.seed)
    known, category = np.unique(demonstrations.category, return_inverse=True)
    return measures.LabeledModes(rows, category, [labels[index] for index in known], config.seed)


def compose(runs: DiversityRuns) -> Findings:
    """Return sections, figures, the table of trajectories and the summary numbers.

    Raises:
        SimulatorError: Fewer than two initial states have all their episodes.
    """
    if runs.complete.sum() < 2:
        raise SimulatorError(
            f"episodes from {(~runs.complete).sum()} of {len(runs.complete)} initial states were"
            " lost to simulator errors",
            "lwdctl doctor",
        )
    numbers = _numbers(runs)
    summary = {
        "task": runs.demonstrations.task,
        "initial_states": int(runs.complete.sum()),
        "steps": runs.demonstrated.shape[1] - 1,
        "horizon": runs.horizon,
        "mode_accuracy": runs.modes.accuracy,
        "mode_definition": runs.modes.definition,
        **numbers,
    }
    episodes = runs.demonstrations.episodes[runs.chosen[runs.complete]]
    trajectories = (
        (name, episodes[place], draw, runs.modes.names[modes[place, draw]])
        for name, modes in runs.classified.items()
        for place, draw in np.ndindex(*modes.shape)
    )
    tables = {TRAJECTORIES: Table.of(("group", "episode", "draw", "mode"), trajectories)}
    sections = list(_sections(runs, numbers))
    return Findings("Diversity of behavior", sections, tables, summary, runs.lost)


def _sections(runs: DiversityRuns, numbers: Numbers) -> Iterator[Section]:
    yield _what_was_run(runs)
    table = Table.of(
        ("group", "mean variance", "variance at the end", "ratio", "low", "high"),
        ((name, one.mean, one.curve[-1].value, one.ratio) for name, one in runs.variances.items()),
    )
    yield Section("Variance of states", VARIANCE_TEXT, "variance", table, draw_variances(runs))
    yield _component_section(runs)
    table = Table.of(
        ("group", *(f"fraction of {name}" for name in runs.modes.names), *MODE_COLUMNS),
        (
            (group, *one["mode_fractions"].values(), *map(one.get, MODE_COLUMNS.values()))
            for group, one in numbers.items()
        ),
    )
    yield Section("Modes of behavior", MODES_TEXT, "modes", table, draw_modes(runs, numbers))
    if runs.within_state:
        rows = (
            (group, runs.states[group].shape[1], *map(numbers[group].get, DRAW_COLUMNS.values()))
            for group in runs.within_state
        )
        title = "Several policies from the same initial state"
        yield Section(title, DRAWS_TEXT, table=Table.of(("latent", "draws", *DRAW_COLUMNS), rows))


def _numbers(runs: DiversityRuns) -> dict[str, dict[str, Any]]:
    """Return group to summary numbers."""
    names = runs.modes.names
    demonstrated = runs.classified[DEMONSTRATIONS][:, 0]
    reference, count = measures.mode_fractions(demonstrated, len(names)), len(demonstrated)
    chance = measures.chance_total_variation(reference, count, runs.config.seed)
    found: dict[str, dict[str, Any]] = {}
    for name, modes in runs.classified.items():
        fractions = measures.mode_fractions(modes[:, 0], len(names))
        variance = runs.variances[name]
        parts = variance.fractions
        found[name] = {
            "mode_fractions": dict(zip(names, fractions.tolist(), strict=True)),
            "effective_modes": measures.effective_number(fractions),
            "mean_variance": variance.mean,
            "largest_component": runs.components[int(np.argmax(parts))],
            "largest_component_fraction": float(parts.max()),
        }
        if name == DEMONSTRATIONS:
            continue
        same = int((modes[:, 0] == demonstrated).sum())
        found[name] |= {
            **flatten_estimate("variance_ratio", variance.ratio),
            "mode_total_variation": measures.total_variation(fractions, reference),
            "mode_total_variation_chance": chance,
            **flatten_estimate("mode_agreement", Estimate.of_rate(same, count)),
            "mode_agreement_chance": float(fractions @ reference),
        }
        if name in runs.within_state:
            pairs, different = measures.draw_agreement(modes, len(names))
            similar = runs.similar_agreement
            found[name] |= {
                **flatten_estimate("within_state_variance", runs.within_state[name]),
                **flatten_estimate("draw_agreement", runs.bootstrap.estimate(pairs)),
                "draw_agreement_chance": different,
                "similar_demonstrations_agreement": float(similar.mean()),
                **flatten_estimate(
                    "draw_agreement_difference", runs.bootstrap.estimate(pairs - similar)
                ),
            }
    return found


def _what_was_run(runs: DiversityRuns) -> Section:
    steps = runs.demonstrated.shape[1] - 1
    once = isinstance(runs.horizon, str) or runs.horizon >= steps
    often = "once" if once else f"every {runs.horizon} steps"
    lost = int((~runs.complete).sum())
    text = (
        f"Task '{runs.demonstrations.task}': policies run from the initial states of"
        f" {len(runs.chosen)} demonstrations ({runs.config.split} split) for {steps} steps,"
        f" re-planning {often}. {runs.modes.definition}"
    )
    if runs.condition:
        names = ", ".join(runs.condition)
        text += f" Beside observations, the diffusion model is conditioned on: {names}."
    if runs.ended:
        text += (
            f" {runs.ended} of these demonstrations ended earlier: they are padded with their last"
            " state, which is a fair comparison only where policies' episodes end as"
            " demonstrations do."
        )
    if runs.demonstrations.left_out:
        text += (
            f" {runs.demonstrations.left_out} demonstrations are left out, because they have no"
            " label, or one that no other demonstration has."
        )
    if lost:
        text += f" {lost} initial states are left out: episodes were lost to simulator errors."
    count = int(runs.complete.sum())
    rows = ((name, count, states.shape[1]) for name, states in runs.states.items())
    table = Table.of(("latent", "initial states", "draws"), rows)
    return Section("What was run", text, table=table)


def _component_section(runs: DiversityRuns) -> Section:
    fractions = np.stack([one.fractions for one in runs.variances.values()])
    order = np.argsort(-fractions.max(axis=0), kind="stable")[:MAX_COMPONENTS]
    reference = runs.variances[DEMONSTRATIONS].components
    others = [name for name in runs.variances if name != DEMONSTRATIONS]
    rows = []
    for place in order:
        row: list[Any] = [runs.components[place], fractions[0, place]]
        for number, name in enumerate(others, start=1):
            variance, below = runs.variances[name].components[place], reference[place]
            ratio = variance / below if below > measures.MIN_VARIANCE else None
            row += [fractions[number, place], ratio]
        rows.append(row)
    columns = (
        "component", f"fraction, {DEMONSTRATIONS}",
        *(column for name in others for column in (f"fraction, {name}", f"ratio, {name}")),
    )  # fmt: skip
    return Section("Variance by component", COMPONENTS_TEXT, table=Table.of(columns, rows))


def draw_variances(runs: DiversityRuns) -> Figure:
    """Draw the variance of states at every step, a line with a band per group."""
    figure, ((axes,),) = plotting.new_figure(5.6, 3.6)
    for index, (name, variance) in enumerate(runs.variances.items()):
        plotting.draw_curve(
            axes, runs.steps.tolist(), variance.curve, color=_color(index), label=name
        )
    axes.set_xlabel("Step")
    axes.set_ylabel("Variance of normalized states")
    axes.set_ylim(bottom=0)
    plotting.finish(figure, "Bands: 95 % bootstrap intervals over initial states.")
    return figure


def draw_modes(runs: DiversityRuns, numbers: Numbers) -> Figure:
    """Draw every mode's fraction of trajectories as bars, one color per group."""
    names, count = runs.modes.names, int(runs.complete.sum())
    figure, ((axes,),) = plotting.new_figure(max(5.6, 1.2 + 1.1 * len(names)), 3.6)
    for index, (group, found) in enumerate(numbers.items()):
        values = list(found["mode_fractions"].values())
        estimates = [Estimate.of_rate(round(one * count), count) for one in values]
        plotting.draw_bars(
            axes, index, len(numbers), range(len(names)), values, plotting.error_bars(estimates),
            color=_color(index), label=group,
        )  # fmt: skip
    # A dollar sign would begin a formula.
    shown = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=20, ha="right", size=8)
    axes.set_ylabel("Fraction of trajectories")
    plotting.finish(figure, f"{count} trajectories per group. Lines: 95 % Wilson intervals.")
    return figure


def _color(index: int) -> str:
    """Return a group's color; the demonstrations, drawn first, are gray."""
    return str(plotting.series_style(index - 1)["color"]) if index else plotting.REFERENCE_COLOR
