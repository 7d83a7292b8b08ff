import pytest

from lwdctl.core.errors import ConfigError
from lwdctl.pipeline.recipe import make_plan, read_recipe
from lwdctl.pipeline.runner import Outcome, compare_all

GOOD = """
[recipe]
title = "A year"

[stage.sow]
field_kind = "wheat"
rows = 4

[stage.grow]

[stage.late]
uses = "grow"
name = "late"
needs = "sow"
days = 20

[stage.reap]
needs = "grow"

[[expected]]
stage = "reap"
metric = "success"
where = { task = "all" }
value = 0.8
tolerance = 0.05
source = "toy"

[smoke.sow]
rows = 1
"""


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "year.toml"
        path.write_text(text)
        return path

    return _write


@pytest.mark.usefixtures("toy_stages")
def test_plan(write):
    plan = {step.id: step for step in make_plan(read_recipe(write(GOOD)))}
    assert list(plan) == ["sow", "grow", "late", "reap"]
    assert plan["sow"].config.rows == 4
    assert plan["sow"].name == "year"
    assert plan["late"].name == "late"
    assert plan["late"].stage.command == "grow"
    assert plan["late"].parents == {"seed": "sow"}
    assert plan["reap"].parents == {"plant": "grow"}


@pytest.mark.usefixtures("toy_stages")
def test_smoke_and_set_and_from(write):
    recipe = read_recipe(write(GOOD))
    plan = make_plan(recipe, assignments=["late.days=7", "sow.sizes=1,2"], smoke=True, start="late")
    by_id = {step.id: step for step in plan}
    assert by_id["sow"].config.rows == 1
    assert by_id["sow"].config.sizes == (1, 2)
    assert by_id["late"].config.days == 7
    assert [step.forced for step in plan] == [False, False, True, True]
    assert {step.name for step in plan} == {"year-smoke", "late-smoke"}


LIKE = (
    GOOD
    + """
[stage.later]
like = "late"
name = "later"
needs = "sow"
fail = "x"

[smoke.grow]
days = 1

[smoke.late]
days = 2
"""
)


@pytest.mark.usefixtures("toy_stages")
def test_like_takes_settings_and_toy_size_but_neither_name_nor_needs(write):
    text = LIKE.replace("[stage.grow]\n", '[stage.first]\nuses = "grow"\n')
    text = text.replace('needs = "grow"', 'needs = "first"')
    plan = {step.id: step for step in make_plan(read_recipe(write(text)))}
    assert (plan["later"].config.days, plan["later"].config.fail) == (20, "x")
    assert plan["later"].name == "later"
    nameless = text.replace('name = "later"\n', "")
    assert make_plan(read_recipe(write(nameless)))[-1].name == "year"
    toys = {step.id: step.config for step in make_plan(read_recipe(write(text)), smoke=True)}
    assert [toys[name].days for name in ("first", "late", "later")] == [1, 2, 2]


SPELLINGS = """
[stage.first]
uses = "sow"
field-kind = "rye"

[stage.second]
like = "first"
field_kind = "oats"

[stage.third]
like = "second"
field-kind = "maize"

[smoke.sow]
field-kind = "cress"

[smoke.third]
field_kind = "peas"
"""


@pytest.mark.usefixtures("toy_stages")
def test_a_setting_may_be_written_with_dashes_or_underscores_but_not_with_both(write):
    def kinds(smoke):
        return [
            step.config.field_kind for step in make_plan(read_recipe(write(SPELLINGS)), smoke=smoke)
        ]

    assert kinds(smoke=False) == ["rye", "oats", "maize"]
    assert kinds(smoke=True) == ["cress", "cress", "peas"]
    for table, spelling in (("stage.second", "field-kind"), ("smoke.sow", "field_kind")):
        twice = SPELLINGS.replace(f"[{table}]", f'[{table}]\n{spelling} = "hops"')
        with pytest.raises(ConfigError, match=rf"\[{table}\] sets 'field_kind' twice"):
            read_recipe(write(twice))


@pytest.mark.usefixtures("toy_stages")
def test_a_commands_name_means_all_its_stages_where_none_is_called_so(write):
    days = ["first", "late"]
    text = GOOD.replace("[stage.grow]\n", '[stage.first]\nuses = "grow"\n')
    text = text.replace('needs = "grow"', 'needs = "first"') + "\n[smoke.grow]\ndays = 1\n"
    recipe = read_recipe(write(text))
    plan = {step.id: step.config for step in make_plan(recipe, assignments=["grow.days=7"])}
    assert [plan[name].days for name in days] == [7, 7]
    toys = {step.id: step.config for step in make_plan(recipe, smoke=True)}
    assert [toys[name].days for name in days] == [1, 1]
    called = read_recipe(write(GOOD + "\n[smoke.grow]\ndays = 1\n"))
    toys = {step.id: step.config for step in make_plan(called, smoke=True)}
    assert [toys[name].days for name in ("grow", "late")] == [1, 20]


@pytest.mark.usefixtures("toy_stages")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('like = "late"', 'like = "lat"', "like 'lat', but no earlier stage"),
        ('like = "late"', 'like = "later"', "like 'later', but no earlier stage"),
        ('like = "late"', 'like = "late"\nuses = "grow"', "either 'uses' or 'like'"),
        ('like = "late"', "like = 3", "'like' takes a text"),
    ],
)
def test_mistakes_with_like(write, old, new, said):
    with pytest.raises(ConfigError, match=said):
        read_recipe(write(LIKE.replace(old, new)))


@pytest.mark.usefixtures("toy_stages")
def test_without_needs_the_latest_maker_is_taken(write):
    text = GOOD.replace('[stage.reap]\nneeds = "grow"', "[stage.reap]")
    plan = {step.id: step for step in make_plan(read_recipe(write(text)))}
    assert plan["reap"].parents == {"plant": "late"}


TWO_FIELDS = """
[stage.sow-a]
uses = "sow"
name = "a"

[stage.sow-b]
like = "sow-a"
name = "b"

[stage.grow-a]
uses = "grow"
needs = "sow-a"

[stage.grow-b]
uses = "grow"

[stage.reap]
"""


@pytest.mark.usefixtures("toy_stages")
def test_the_primary_input_derives_from_every_stage_that_is_needed(write):
    def parents(needs):
        return make_plan(read_recipe(write(f"{TWO_FIELDS}needs = {needs}\n")))[-1].parents

    assert parents('["sow-a"]') == {"seed": "sow-a", "plant": "grow-a"}
    assert parents('["sow-b"]') == {"seed": "sow-b", "plant": "grow-b"}
    assert parents("[]") == {"plant": "grow-b"}
    with pytest.raises(ConfigError, match="needs sow-a, but the plant of grow-b does not derive"):
        parents('["sow-a", "grow-b"]')


@pytest.mark.usefixtures("toy_stages")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[recipe]", "[recipes]", r"unknown table \[recipes\]"),
        ("title =", "titel =", r"year.toml \[recipe\]: unknown setting 'titel'"),
        ("rows = 4", "rowz = 4", r"year.toml \[stage.sow\]: unknown setting 'rowz'"),
        ("rows = 4", "rows = 40", "'rows' must be at most 9"),
        ("rows = 4", 'rows = "4"', "'rows' takes int"),
        ("rows = 1", "rows = 0", r"\[smoke.sow\]: 'rows' must be at least 1"),
        ("[smoke.sow]", "[smoke.sew]", r"\[smoke.sew\] belongs to no stage"),
        ('uses = "grow"', 'uses = "growl"', "no stage is called 'growl'"),
        ('needs = "sow"', 'needs = "soe"', "needs 'soe'"),
        ('needs = "grow"', 'needs = ["grow", "late"]', "needs 'late', which makes plant"),
        ("[stage.grow]", "[stage.reap0]\nuses = 'reap'\n[stage.grow]", "which no earlier stage"),
        ('stage = "reap"', 'stage = "rape"', "no stage 'rape'"),
        ("value = 0.8", "valu = 0.8", "unknown setting 'valu'"),
        ("value = 0.8\n", "", "give either 'value'"),
        ("value = 0.8\n", "value = 0.8\nat_least = 1.0\n", "give either 'value'"),
        ("rows = 4", "rows = ", "not valid TOML"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(write, old, new, said):
    assert old in GOOD
    with pytest.raises(ConfigError, match=said):
        make_plan(read_recipe(write(GOOD.replace(old, new, 1))))


def test_a_recipe_that_is_not_there(write):
    path = write(GOOD)
    with pytest.raises(ConfigError, match="no recipe at") as caught:
        read_recipe(path.with_name("yaer.toml"))
    assert "year.toml" in caught.value.hint


@pytest.mark.usefixtures("toy_stages")
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rows=2", "not of the form stage.key=value"),
        ("sew.rows=2", "no stage 'sew'"),
        ("sow.rowz=2", "unknown setting 'rowz'"),
        ("sow.rows=two", "'rows' takes int"),
    ],
)
def test_set_mistakes(write, word, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(read_recipe(write(GOOD)), assignments=[word])


@pytest.mark.usefixtures("toy_stages")
@pytest.mark.parametrize("which", ["start", "until"])
def test_from_and_until_an_unknown_stage(write, which):
    with pytest.raises(ConfigError, match="no stage 'ripe'") as caught:
        make_plan(read_recipe(write(GOOD)), **{which: "ripe"})
    assert "reap" in caught.value.hint


@pytest.mark.usefixtures("toy_stages")
def test_the_first_stage_to_run_again_does_not_come_after_the_last_one(write):
    recipe = read_recipe(write(GOOD))
    with pytest.raises(ConfigError, match="stage 'reap' comes after 'sow'"):
        make_plan(recipe, start="reap", until="sow")
    assert [step.forced for step in make_plan(recipe, start="sow", until="sow")] == [True]


@pytest.mark.usefixtures("toy_stages")
def test_until_ends_the_plan_and_leaves_out_what_later_stages_are_expected_to_give(write):
    recipe = read_recipe(write(GOOD))
    plan = make_plan(recipe, until="grow")
    assert [step.id for step in plan] == ["sow", "grow"]
    assert compare_all(recipe.expected, [Outcome(step, "made", None) for step in plan]) == ()
