import json

import numpy as np
import pytest
from evaluation_grid import episode, grid_records, outcomes, publish, record

from lwdctl.analysis.comparison import compare
from lwdctl.analysis.evaluations import (
    SUCCESS,
    align,
    group_runs,
    matrix,
    read_evaluations,
    values_of,
)
from lwdctl.analysis.resample import mcnemar, paired_permutation
from lwdctl.analysis.tables import EMPTY
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.snippets import SnippetWriter
from lwdctl.core.errors import ArtifactError, ConfigError
from lwdctl.core.records import ActionSpec, EnvSpec, Episode, ObservationSpec, SourceSpec
from lwdctl.evaluation.results import ConditionResult

pytestmark = pytest.mark.usefixtures("few_resamples")


def read(workspace, *artifacts):
    return read_evaluations(artifacts, workspace.root)


def solved(pattern, **fields):
    return [episode(i, mark == "1", float(mark == "1"), **fields) for i, mark in enumerate(pattern)]


def test_a_run_says_what_it_is(workspace):
    made = record("dp", solved("110"), horizon=32, perturbation=10.0, train_seed=2,
                  cost={"flops_per_step": 5e6})  # fmt: skip
    (run,) = read(workspace, publish(workspace, "toy", [made], max_steps=40))
    row = run.overall
    assert (row.policy, row.latent, run.label, row.env) == ("dp", "", "dp", "toyland")
    assert (row.horizon, row.perturbation, row.train_seed, run.max_steps) == (32, 10.0, 2, 40)
    assert run.metrics == ("overlap", "final_overlap", "final_success")
    assert run.costs() == (5e6, 0.5)
    assert run.episode_keys == tuple(("push", "seed", "", 100_000 + k) for k in range(3))
    assert [item.success for item in run.episodes] == [True, True, False]
    assert values_of(run.episodes[0]) == {
        "overlap": 1.0, "final_overlap": 0.5, "return": 10.0, "final_success": 1.0, "steps": 30.0,
        "success": 1.0,
    }  # fmt: skip


def test_the_score_is_the_return_where_it_is_the_first_metric(workspace):
    items = [{**item, "metrics": {"return": 1.0}} for item in solved("110")]
    made = record("dp", items)
    made["results"][0]["metrics"] = {"return": 1.0, "final_success": 0.6}
    (run,) = read(workspace, publish(workspace, "toy", [made]))
    assert run.metrics[0] == "return"


def test_the_order_of_evaluations_and_naming_one_twice_change_nothing(workspace):
    first = publish(workspace, "a", grid_records(policies=("lwd",)))
    second = publish(workspace, "b", grid_records(policies=("dp",)))
    assert read(workspace, first, second) == read(workspace, second, first, first)


def test_result_rows_that_a_later_version_took_over_count_once(workspace):
    records = grid_records(policies=("lwd",), horizons=(16,))
    first = publish(workspace, "a", records)
    more = publish(workspace, "a", [*records, *grid_records(policies=("dp",), horizons=(16,))])
    runs = read(workspace, first, more)
    assert [(run.label, run.overall.perturbation) for run in runs] == [
        ("dp", 0.0), ("dp", 10.0), ("lwd", 0.0), ("lwd", 10.0),
    ]  # fmt: skip


def test_the_same_untrained_policy_measured_again_is_the_same(workspace):
    made = record("random", solved("010"), horizon=None, train_seed=None)
    again = json.loads(json.dumps(made))
    again["results"][0]["seconds"]["total"] = 9.0
    assert (
        len(read(workspace, publish(workspace, "a", [made]), publish(workspace, "b", [again]))) == 1
    )


def test_policies_that_would_be_mistaken_for_each_other_are_distinguished(workspace):
    one = [record("lwd", solved("110"), train_seed=seed) for seed in (0, 1)]
    other = [record("lwd", solved("100"), train_seed=seed) for seed in (0, 1)]
    runs = read(workspace, publish(workspace, "small", one), publish(workspace, "large", other))
    assert [(run.label, run.overall.train_seed) for run in runs] == [
        ("lwd (large)", 0), ("lwd (large)", 1), ("lwd (small)", 0), ("lwd (small)", 1),
    ]  # fmt: skip
    fast, slow = record("lwd", solved("110")), record("lwd", solved("111"), num_inference_steps=100)
    runs = read(workspace, publish(workspace, "steps", [fast, slow]))
    assert {run.label for run in runs} == {
        "lwd (10 denoising steps)", "lwd (100 denoising steps)",
    }  # fmt: skip


def test_labels_say_all_that_differs_in_how_policies_act(workspace):
    plain, other = record("dp", solved("110")), {"sampler": "ddpm", "inpainting": 0.5}
    made = [plain, record("dp", solved("111"), **other)]
    runs = read(workspace, publish(workspace, "a", made))
    assert {run.label for run in runs} == {
        "dp (ddim, no inpainting)", "dp (ddpm, inpainting 0.5)",
    }  # fmt: skip


def test_training_seeds_of_several_evaluations_are_gathered(workspace):
    made = [publish(workspace, f"s{s}", [record("lwd", solved("110"), train_seed=s)])
            for s in (2, 0, 1)]  # fmt: skip
    (group,) = group_runs(read(workspace, *made))
    assert [run.overall.train_seed for run in group.runs] == [0, 1, 2]
    values, states = matrix(group, SUCCESS)
    assert values.tolist() == [[1, 1, 0]] * 3
    assert states.stratum.tolist() == [0, 0, 0]
    assert states.unit.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "other", [{"sampler": "ddpm"}, {"num_inference_steps": 100}, {"snippet_length": 50}]
)
def test_another_setting_is_no_other_training_seed(other, workspace):
    first = publish(workspace, "a", [record("lwd", solved("110"), train_seed=0)])
    second = publish(workspace, "b", [record("lwd", solved("000"), train_seed=1, **other)])
    runs = read(workspace, first, second)
    assert len(group_runs(runs)) == len({run.label for run in runs}) == 2


def trained(workspace, name, seed, **config):
    """Publish a baseline, and an evaluation of it under the same name."""
    settings = {"updates": 9, "seed": seed, "threads": seed + 1, **config}
    with workspace.begin("baseline", name, config=settings, inputs=()) as draft:
        (draft.path / "file").write_text("x")
        model = draft.publish({}, seed=seed)
    made = record("dp", solved("110"), train_seed=seed) | {"models": {"baseline": model.reference}}
    return publish(workspace, name, [made], inputs=[model])


def test_another_training_is_no_other_training_seed(workspace):
    first, second = trained(workspace, "a", 0), trained(workspace, "b", 1)
    other = trained(workspace, "c", 2, updates=2)
    (group,) = group_runs(read(workspace, first, second))
    assert (group.one.label, group.train_seeds) == ("dp", (0, 1))
    groups = group_runs(read(workspace, first, second, other))
    assert {item.one.label: item.train_seeds for item in groups} == {
        "dp (baseline updates 9)": (0, 1), "dp (baseline updates 2)": (2,),
    }  # fmt: skip


def test_what_was_trained_before_a_setting_existed_has_its_default(workspace):
    before, after = trained(workspace, "a", 0), trained(workspace, "b", 1, condition_dropout=0.0)
    hidden = trained(workspace, "c", 2, condition_dropout=0.1)
    groups = group_runs(read(workspace, before, after, hidden))
    assert {item.one.label: item.train_seeds for item in groups} == {
        "dp (baseline condition dropout 0.0)": (0, 1), "dp (baseline condition dropout 0.1)": (2,),
    }  # fmt: skip


def test_a_training_on_other_demonstrations_is_no_other_training_seed(workspace):
    def made(name, seed, content):
        with workspace.begin("snippets", name, config={"seed": 0}, inputs=()) as draft:
            (draft.path / "file").write_text(content)
            data = draft.publish({}, seed=0)
        models = {"models": {"snippets": data.reference}}
        result = record("dp", solved("110"), train_seed=seed) | models
        return publish(workspace, name, [result], inputs=[data])

    runs = read(workspace, made("a", 0, "one"), made("b", 1, "one"), made("c", 2, "other"))
    assert sorted(item.train_seeds for item in group_runs(runs)) == [(0, 1), (2,)]


def test_training_seeds_over_one_vae_are_noted(workspace):
    def made(vae, seed):
        models = {"models": {"vae": vae, "diffusion": f"diffusion/{vae}-{seed}"}}
        result = record("lwd", solved("110"), train_seed=seed) | models
        return publish(workspace, f"{vae}-{seed}", [result])

    one, same, other = made("a", 0), made("a", 1), made("b", 1)
    assert any("share one VAE (a)" in note for note in compare(read(workspace, one, same)).notes)
    assert not any("VAE" in note for note in compare(read(workspace, one, other)).notes)


def test_labels_of_one_state_are_one_state(workspace):
    episodes = [
        {**episode(index, label == "good", 1.0), "label": label}
        for label in ("good", "bad")
        for index in range(3)
    ]
    (group,) = group_runs(read(workspace, publish(workspace, "a", [record("lwd", episodes)])))
    values, states = matrix(group, SUCCESS)
    assert len(states) == 3
    assert states.shared
    assert states.means(values[0]).tolist() == [0.5, 0.5, 0.5]
    restored = [
        {**episode(index, True, 1.0, demonstration=index), "label": "good"} for index in range(3)
    ]
    (group,) = group_runs(read(workspace, publish(workspace, "b", [record("lwd", restored)])))
    assert not matrix(group, SUCCESS)[1].shared


def test_two_measurements_of_one_thing_in_one_evaluation_are_refused(workspace):
    made = [record("lwd", solved("110")), record("lwd", solved("000"))]
    with pytest.raises(ArtifactError, match="measured twice"):
        read(workspace, publish(workspace, "a", made))


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        ({"env": "elsewhere"}, {}, "environment: toyland and elsewhere"),
        ({}, {"max_steps": 99}, "step limit: the environment's own and 99"),
        ({}, {"perturbation_probability": 0.5}, "probability of a perturbation: 0.1 and 0.5"),
    ],
)
def test_another_protocol_is_refused(change, config, said, workspace):
    pushed = {"perturbation": 10.0}
    first = publish(workspace, "a", [record("lwd", solved("110"), **pushed)])
    second = publish(workspace, "b", [record("dp", solved("110"), **pushed, **change)], **config)
    for pair in ((first, second), (second, first)):
        with pytest.raises(ArtifactError, match=said):
            compare(read(workspace, *pair))


def test_the_step_limit_of_the_data_counts_where_none_was_set(workspace):
    def made(policy, limit, **config):
        env = EnvSpec("toyland", ("push",), {}, limit)
        action = ActionSpec(1, "absolute", "meters", (), ())
        spec = SourceSpec((ObservationSpec("x", 1),), action, env, (), "made")
        rows = np.zeros((3, 1), np.float32)
        with workspace.begin("snippets", f"of-{limit}", config={}) as draft:
            writer = SnippetWriter(draft.path / SNIPPETS_PAYLOAD, spec)
            writer.append(Episode("demo", {"x": rows}, rows, task="push", split="train"))
            data = draft.publish(writer.close())
        result = record(policy, solved("110"))
        return publish(workspace, f"{policy}-{limit}", [result], inputs=[data], **config)

    short, long = made("lwd", 24), made("dp", 300)
    with pytest.raises(ArtifactError, match=r"step limit: (24 and 300|300 and 24)"):
        compare(read(workspace, short, long))
    compare(read(workspace, short, made("dp", 99, max_steps=24)))


def test_how_often_nothing_is_perturbed_does_not_matter(workspace):
    first = publish(workspace, "a", [record("lwd", solved("110"))])
    second = publish(workspace, "b", [record("dp", solved("110"))], perturbation_probability=0.5)
    assert len(compare(read(workspace, first, second)).results) == 2


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (solved("110", seed=100_001), "3 and 3, 2 in common"),
        (solved("1101"), "4 and 3, 3 in common"),
        (solved("110", task="pull"), "ran pull, .* push"),
    ],
)
def test_other_initial_states_are_not_paired(other, said, workspace):
    made = [record("lwd", solved("110")), record("dp", other)]
    runs = read(workspace, publish(workspace, "a", made))
    with pytest.raises(ArtifactError, match=said):
        compare(runs)


def test_training_seeds_must_meet_the_same_states(workspace):
    made = [record("lwd", solved("110")), record("lwd", solved("1101"), train_seed=1)]
    with pytest.raises(ArtifactError, match="different initial states"):
        compare(read(workspace, publish(workspace, "a", made)))


def test_recorded_initial_states_pair_only_among_themselves(workspace):
    restored = [episode(i, i % 2, 0.5, demonstration=number) for i, number in enumerate((7, 3, 5))]
    made = [
        record("lwd", solved("110")),
        record("lwd", restored, latent="oracle"),
        record("lwd", restored, latent="oracle", perturbation=10.0),
        record("ldp", restored, latent="oracle"),
        record("dp", solved("011")),
    ]
    comparison = compare(read(workspace, publish(workspace, "a", made)))
    assert [(pair.label, pair.against) for pair in comparison.tests] == [
        ("dp", "lwd"), ("ldp-oracle", "lwd-oracle"),
    ]  # fmt: skip
    assert [control.label for control in comparison.controls] == ["lwd-oracle"]
    assert any("lwd-oracle" in note for note in comparison.notes)


def test_recorded_initial_states_of_two_sources_are_different_states(workspace):
    restored = [episode(i, 1, 0.5, demonstration=i) for i in range(3)]
    first = publish(workspace, "a", [record("lwd", restored, latent="oracle")])
    second = publish(workspace, "b", [record("ldp", restored, latent="oracle")])
    one, other = group_runs(read(workspace, first, second))
    with pytest.raises(ArtifactError, match="initial states of different demonstrations"):
        align(one, other, SUCCESS)
    seeded = publish(workspace, "c", [record("dp", solved("111"))])
    (drawn,) = group_runs(read(workspace, seeded))
    with pytest.raises(ArtifactError, match="3 and 3, 0 in common"):
        align(one, drawn, SUCCESS)


def test_lost_episodes_are_paired_with_nothing(workspace):
    lost = [*solved("11"), episode(2, False, 0.0, error="hung")]
    runs = read(
        workspace, publish(workspace, "a", [record("dp", lost), record("lwd", solved("101"))])
    )
    comparison = compare(runs)
    (pair,) = comparison.tests
    assert (pair.states, pair.better, pair.worse) == (2, 1, 0)
    lwd, dp = comparison.overall
    assert (dp.episodes, dp.errors, dp.success.value) == (2, 1, 1.0)
    assert (lwd.episodes, lwd.errors) == (3, 0)


def test_an_unreadable_record_is_named(workspace):
    made = record("lwd", solved("110"))
    del made["episodes"][1]["metrics"]
    with pytest.raises(ArtifactError, match=r"lwd-0\.json is no record of episodes"):
        read(workspace, publish(workspace, "a", [made]))


def test_tests_of_one_training_seed_by_hand(workspace):
    lwd, dp = solved("1111111100"), solved("1100000001")
    made = [record("lwd", lwd), record("dp", dp)]
    comparison = compare(read(workspace, publish(workspace, "a", made)))
    (pair,) = comparison.tests
    assert (pair.states, pair.better, pair.worse, pair.success_test) == (10, 1, 6, "McNemar")
    assert pair.success_p == mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 128)
    assert pair.success_p == pair.success_p_holm
    assert pair.success_difference.value == pytest.approx(-0.5)
    assert pair.score_difference.value == pytest.approx(-0.5)
    assert pair.success_difference.low < -0.5 < pair.success_difference.high


def test_tests_of_several_training_seeds_have_the_state_as_unit(workspace):
    lwd = [record("lwd", solved(p), train_seed=s) for s, p in enumerate(("1111", "1110", "1100"))]
    dp = [record("dp", solved(p), train_seed=s) for s, p in enumerate(("1000", "0001"))]
    comparison = compare(read(workspace, publish(workspace, "a", [*lwd, *dp])))
    (pair,) = comparison.tests
    gaps = [0.5 - 1, 0 - 1, 0 - 2 / 3, 0.5 - 1 / 3]
    assert (pair.states, pair.better, pair.worse) == (4, 1, 3)
    assert pair.success_test == "permutation"
    assert pair.success_difference.value == pytest.approx(sum(gaps) / 4)
    # Sixteen ways to flip; the sum is exceeded by none but the one with every sign alike.
    assert pair.success_p == pytest.approx(4 / 16)
    assert pair.success_p == pytest.approx(paired_permutation(np.array(gaps)))


def test_standard_deviation_between_training_seeds(workspace):
    made = [record("lwd", solved(p), train_seed=s) for s, p in enumerate(("1111", "1100", "0000"))]
    (cell,) = compare(read(workspace, publish(workspace, "a", made))).results
    assert (cell.success.value, cell.success_std) == (pytest.approx(0.5), pytest.approx(0.5))
    assert cell.train_seeds == (0, 1, 2)
    assert cell.success.low == 0.0
    assert cell.success.high == 1.0


def test_a_control_is_the_same_models_unperturbed(workspace):
    made = [
        record("lwd", solved("1111"), train_seed=0),
        record("lwd", solved("1110"), train_seed=1),
        record("lwd", solved("1100"), train_seed=0, perturbation=10.0),
        record("lwd", solved("1000"), train_seed=1, perturbation=10.0),
        record("lwd", solved("0000"), train_seed=5, perturbation=10.0),
    ]
    (control,) = compare(read(workspace, publish(workspace, "a", made))).controls
    assert control.train_seeds == (0, 1)
    assert (control.states, control.perturbation) == (4, 10.0)
    assert control.success_difference.value == pytest.approx(-0.5)
    assert control.success_difference.low <= -0.5 <= control.success_difference.high


@pytest.mark.parametrize(
    ("changed", "labels"),
    [
        ({"guidance": 2.0}, {"lwd (guidance 1)", "lwd (guidance 2)"}),
        ({"num_inference_steps": 5}, {"lwd (10 denoising steps)", "lwd (5 denoising steps)"}),
    ],
)
def test_a_control_acts_with_the_same_settings(changed, labels, workspace):
    plain = publish(workspace, "a", [record("lwd", solved("1111"))])
    other = publish(workspace, "b", [record("lwd", solved("0000"), perturbation=1.0, **changed)])
    found = compare(read(workspace, plain, other))
    assert {row.label for row in found.results} == labels
    assert not found.controls
    assert any("without an unperturbed control" in note for note in found.notes)


def test_a_control_is_no_other_model_of_the_same_settings(workspace):
    made = [
        record("dp", solved("1111")) | {"models": {"baseline": "dp:v1"}},
        record("dp", solved("0000"), perturbation=1.0) | {"models": {"baseline": "dp:v2"}},
    ]
    assert not compare(read(workspace, publish(workspace, "a", made))).controls
    made[1]["models"] = made[0]["models"]
    (control,) = compare(read(workspace, publish(workspace, "b", made))).controls
    assert control.train_seeds == (0,)


def test_a_policy_without_horizon_meets_every_horizon_of_the_reference(workspace):
    made = [
        record("lwd", solved("1110"), horizon=16),
        record("lwd", solved("1100"), horizon=32),
        record("random", solved("0000"), horizon=None, train_seed=None),
    ]
    comparison = compare(read(workspace, publish(workspace, "a", made)))
    assert [(pair.horizon, pair.against_horizon) for pair in comparison.tests] == [
        (None, 16), (None, 32),
    ]  # fmt: skip


def test_other_settings_at_another_horizon_are_noted(workspace):
    made = [
        record("lwd", solved("1110"), horizon=16),
        record("lwd", solved("1111"), horizon=32, snippet_length=32, guidance=2.0),
        record("lwd", solved("1111"), horizon=64, snippet_length=64, guidance=2.0),
    ]
    notes = compare(read(workspace, publish(workspace, "a", made))).notes
    said = "horizons of lwd differ in more: guidance 1 at 16, guidance 2 at 32, 64"
    assert [note for note in notes if "differ in more" in note] == [said]
    assert said not in compare(read(workspace, publish(workspace, "b", made[1:]))).notes


def test_a_reference_of_one_horizon_is_taken_for_all(workspace):
    made = [
        record("lwd", solved("1110"), horizon="episode"),
        record("dp", solved("1100"), horizon=32),
        record("dp", solved("0100"), horizon=128),
    ]
    comparison = compare(read(workspace, publish(workspace, "a", made)))
    assert [(pair.horizon, pair.against_horizon) for pair in comparison.tests] == [
        (32, "episode"), (128, "episode"),
    ]  # fmt: skip


def test_every_task_has_a_result_row_and_the_tests_are_of_all(workspace):
    def two(pattern):
        return [
            episode(i, mark == "1", 0.5, task)
            for task in ("pull", "push")
            for i, mark in enumerate(pattern)
        ]

    made = [record("lwd", two("110")), record("dp", two("010"))]
    comparison = compare(read(workspace, publish(workspace, "a", made)))
    assert [(cell.label, cell.task, cell.episodes) for cell in comparison.results] == [
        ("lwd", "pull", 3), ("lwd", "push", 3), ("lwd", "all", 6),
        ("dp", "pull", 3), ("dp", "push", 3), ("dp", "all", 6),
    ]  # fmt: skip
    (pair,) = comparison.tests
    assert (pair.states, pair.better, pair.worse) == (6, 0, 2)


def test_rows_of_tasks_have_the_costs_of_their_task(workspace):
    episodes = [episode(i, True, 1.0, task) for task in ("pull", "push") for i in range(2)]
    made = record("lwd", episodes, cost={"flops_per_step": 3e6})
    costs = {"pull": (1e6, 1.0), "push": (9e6, 3.0)}
    parts = [
        {**made["results"][0], "task": task, "episodes": 2, "cost": {"flops_per_step": flops},
         "seconds": {"total": seconds}}
        for task, (flops, seconds) in costs.items()
    ]  # fmt: skip
    made["results"] = [*parts, *made["results"]]
    found = compare(read(workspace, publish(workspace, "a", [made]))).results
    assert [(row.task, row.flops_per_step, row.seconds_per_episode) for row in found] == [
        ("pull", 1e6, 0.5), ("push", 9e6, 1.5), ("all", 3e6, 0.5),
    ]  # fmt: skip


def test_the_reference_can_be_chosen(workspace):
    runs = read(workspace, publish(workspace, "a", grid_records(perturbations=(0.0,))))
    forward, backward = compare(runs), compare(runs, against="dp")
    assert {pair.label for pair in backward.tests} == {"lwd"}
    for one, other in zip(forward.tests, backward.tests, strict=True):
        assert one.success_p == pytest.approx(other.success_p)
        assert one.score_p == pytest.approx(other.score_p)
        assert one.score_difference.value == pytest.approx(-other.score_difference.value)
    with pytest.raises(ConfigError, match="no evaluated policy is 'ldp'") as caught:
        compare(runs, against="ldp")
    assert "'dp'" in caught.value.hint


def test_of_several_references_the_one_with_the_most_conditions_is_taken(workspace):
    """The first by name has one training seed more, and no perturbation."""
    few = [record("lwd", outcomes(10, 0.5, seed), train_seed=seed) for seed in (0, 1, 2)]
    many = [
        record("lwd", outcomes(10, 0.5, 9), num_inference_steps=100, perturbation=pushed)
        for pushed in (0.0, 10.0)
    ]
    rival = [record("dp", outcomes(10, 0.5, 8), perturbation=pushed) for pushed in (0.0, 10.0)]
    comparison = compare(read(workspace, publish(workspace, "a", few + many + rival)))
    chosen = "lwd (100 denoising steps)"
    assert comparison.against == chosen
    assert {test.perturbation for test in comparison.tests if test.label == "dp"} == {0.0, 10.0}
    assert (
        f"tested against '{chosen}'; --against takes any of: lwd (10 denoising steps), {chosen}"
        in comparison.notes
    )


def test_without_the_method_nothing_is_tested_and_it_is_reported(workspace):
    comparison = compare(
        read(workspace, publish(workspace, "a", [record("dp", outcomes(10, 0.5, 1))]))
    )
    assert comparison.tests == ()
    assert "--against" in comparison.notes[0]


def test_the_metric_can_be_chosen(workspace):
    runs = read(workspace, publish(workspace, "a", [record("lwd", solved("1100"))]))
    assert compare(runs).metric == "overlap"
    assert compare(runs, metric="final_overlap").results[0].score.value == pytest.approx(0.25)
    assert compare(runs, metric="return").results[0].score.value == pytest.approx(5.0)
    with pytest.raises(ConfigError, match="no metric 'overlapp'") as caught:
        compare(runs, metric="overlapp")
    assert "did you mean 'overlap'" in caught.value.hint


def test_results_in_memory_compare_as_those_on_disk(workspace):
    records = grid_records(perturbations=(0.0,))
    on_disk = compare(read(workspace, publish(workspace, "a", records)))
    in_memory = compare([ConditionResult.from_json(item) for item in records], against="lwd")
    assert in_memory.to_json() == on_disk.to_json()
    assert "| lwd | sampled | 16 |" in in_memory._repr_markdown_()
    assert "Paired tests: minus lwd" in repr(in_memory)


def made(workspace, kind, name, summary, inputs=()):
    with workspace.begin(kind, name, config={}, inputs=inputs) as draft:
        return draft.publish(summary)


@pytest.mark.parametrize(
    ("verdicts", "shown"),
    [
        ((), None),
        (("still gains", "flat"), "unchecked"),  # the newest counts; seed 1 was never analyzed
        (("flat", "still gains"), "still gains"),
    ],
)
def test_models_that_are_not_trained_to_the_end_are_marked(workspace, verdicts, shown):
    records = grid_records(policies=("dp",), horizons=(16,), perturbations=(0.0,), seeds=(0, 1))
    models = [made(workspace, "baseline", f"dp{seed}", {"seed": seed}) for seed in (0, 1)]
    for item, model in zip(records, models, strict=True):
        item["models"] = {"baseline": model.reference}
    oracle = record("lwd", solved("1" * 20), latent="oracle", horizon=16)
    evaluation = publish(workspace, "toy", [*records, oracle], inputs=models)
    for verdict in verdicts:
        made(workspace, "analysis", "convergence", {"verdict": verdict}, [models[0]])
    comparison = compare(read(workspace, evaluation), against="dp")
    table = comparison.table
    if shown is None:
        assert "training" not in table.columns
        return
    place = table.columns.index("training")
    assert {row[0]: row[place] for row in table.rows} == {"dp": shown, "lwd-oracle": EMPTY}
