import pytest

from lwdctl.core.errors import ConfigError, MissingExtraError, install_extra
from lwdctl.core.records import EnvSpec
from lwdctl.core.registry import Row
from lwdctl.envs.table import ENVIRONMENTS, check_tasks, environment_named, make_simulator


def test_an_unknown_adapter_is_named_with_the_closest_one():
    with pytest.raises(ConfigError, match="metawold") as caught:
        make_simulator(EnvSpec("metawold", ("reach",)), "reach")
    assert "'metaworld'" in caught.value.hint


def test_every_name_is_checked():
    check_tasks(["a", "b"], ["a", "b", "c"])
    with pytest.raises(ConfigError, match="'drawer-opn'") as caught:
        check_tasks(["reach", "drawer-opn"], ["reach", "drawer-open"])
    assert "'drawer-open'" in caught.value.hint


def test_a_simulator_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS.rows, "lost", Row("no_such_simulator:X", "", extra="lost"))
    with pytest.raises(MissingExtraError) as caught:
        make_simulator(EnvSpec("lost", ("t",)), "t")
    assert install_extra("lost") in caught.value.hint


def test_a_name_stands_for_one_task_or_for_all():
    assert (
        environment_named("pusht/push_t")
        == environment_named("pusht")
        == EnvSpec("pusht", ("push_t",))
    )
    with pytest.raises(ConfigError, match="no task 'push'") as caught:
        environment_named("pusht/push")
    assert "push_t" in caught.value.hint


def test_rows_have_summaries():
    assert all(ENVIRONMENTS.rows[name].summary for name in ENVIRONMENTS)
