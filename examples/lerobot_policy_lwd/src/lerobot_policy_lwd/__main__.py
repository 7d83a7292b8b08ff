"""`python -m lerobot_policy_lwd EXPORTED DIR`: make a directory for `--policy.path`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lerobot_policy_lwd import LWDConfig, LWDPolicy
from lwdctl.artifacts.files import whole_directory
from lwdctl.core.errors import ConfigError, LwdctlError


def main(words: list[str] | None = None) -> int:
    """Make the directory, print its path, and return the exit code."""
    arguments = _parser().parse_args(words)
    try:
        policy = convert(arguments)
    except LwdctlError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(arguments.directory)
    print(f"observations: {json.dumps(policy.config.feature_names)}", file=sys.stderr)
    print(f"next: lerobot-eval --policy.path={arguments.directory} --env.type=...", file=sys.stderr)
    return 0


def convert(arguments: argparse.Namespace) -> LWDPolicy:
    """Write the directory, completely or not at all.

    Raises:
        LwdctlError: There is no exported policy, settings do not fit it, or the directory exists.
    """
    target: Path = arguments.directory
    if target.exists():
        raise ConfigError(f"{target} exists already", "name another directory")
    config = LWDConfig(
        feature_names=dict(arguments.feature),
        task=arguments.task,
        task_names=dict(arguments.task_name),
        label=arguments.label,
        seed=arguments.seed,
    )
    policy = LWDPolicy(config, arguments.exported)
    with whole_directory(target) as unfinished:
        policy.save_pretrained(unfinished)
    return policy


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lerobot_policy_lwd",
        description="Make a directory for LeRobot's --policy.path from an exported policy.",
    )
    add = parser.add_argument
    add("exported", type=Path, metavar="EXPORTED", help="Directory of 'lwdctl export policy'.")
    add("directory", type=Path, metavar="DIR", help="Directory to create.")
    add(
        "--feature",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=FEATURE",
        help="LeRobot feature that holds an observation of the policy; may be repeated. Default:"
        " observation.KEY, as 'lwdctl export lerobot' names it.",
    )
    add("--task", metavar="NAME", help="Task of every environment. Default: LeRobot's task texts.")
    add(
        "--task-name",
        type=_pair,
        action="append",
        default=[],
        metavar="TEXT=NAME",
        help="Task of the policy that a task text of LeRobot means; may be repeated.",
    )
    add("--label", metavar="NAME", help="Behavior label of every environment.")
    add("--seed", type=int, default=1000, help="Seed of the first episode. Default: 1000.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
