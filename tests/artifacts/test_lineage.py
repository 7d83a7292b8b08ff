"""Settings of an artifact as options of the command that made it."""

from types import SimpleNamespace

from lwdctl.artifacts.lineage import options_of


def test_options_are_the_settings_that_are_no_defaults():
    config = {"time_input": False, "loss_steps": None, "snippet_length": 16, "seed": 3}
    config["observation_keys"] = ["a,b", "c d"]
    made = SimpleNamespace(type="vae", manifest=SimpleNamespace(config=config))
    words = options_of(made, snippet_length=8, seed=1)
    assert words.endswith(" --seed 1")
    for option in (
        "--no-time-input", "--loss-steps none", "--snippet-length 8",
        r"--observation-keys 'a\,b,c d'",
    ):  # fmt: skip
        assert option in words
    assert "--batch-size" not in words
    assert options_of(None, seed=2) == " --seed 2"
