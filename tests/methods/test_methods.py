"""The table of methods: facts that stand in it are those of the methods themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lwdctl.methods import METHODS, method_facts
from lwdctl.methods.trained import load_method


@pytest.mark.parametrize("name", METHODS.rows)
def test_the_facts_in_the_table_are_those_of_the_method(name):
    facts, method = method_facts(name), load_method(name)
    assert (facts.artifact_type, facts.replans) == (method.artifact_type, method.replans)


def test_the_facts_are_known_without_torch():
    code = (
        "import sys; from lwdctl.methods import METHODS, method_facts\n"
        "assert method_facts('lwd').replans and not method_facts('mlp').replans\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
