"""What goes wrong on the way to the Hub is one error line with a hint; the token is never shown."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest
from huggingface_hub import constants

import lwdctl
from lwdctl.cli.main import main
from lwdctl.core.errors import ConfigError, DataError
from lwdctl.sharing.hub import Address
from lwdctl.sharing.push import check_license

sys.path.insert(0, str(Path(__file__).parent))
from hub_server import READ_ONLY, TOKEN, Repository
from sharing_steps import QUIET, push

sys.path.pop(0)


@pytest.fixture
def fails(ours, theirs, capsys):
    """Run a command that must end with one error line and a hint; return both."""

    def run(line):
        command, *rest = line.split()
        place = ours if command == "push" else theirs
        options = ["--license", "mit"] if command == "push" else []
        status = main([command, *rest, *options, "-q", "--workspace", str(place.root)])
        printed = capsys.readouterr()
        assert status == 1, printed
        lines = printed.err.splitlines()
        assert [one.partition(":")[0] for one in lines] == ["error", "hint"], printed.err
        for secret in (TOKEN, READ_ONLY, "hf_Other"):
            assert secret not in printed.err + printed.out
        return printed.err

    return run


PUSH, PULL = "push diffusion/toy me/toy", "pull me/toy"


@pytest.mark.parametrize("line", [PUSH, PULL])
def test_offline(hub, fails, monkeypatch, line):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in fails(line)


@pytest.mark.parametrize("line", [PUSH, PULL])
def test_nobody_answers(hub, fails, monkeypatch, line):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    printed = fails(line)
    assert "does not respond" in printed
    assert "Connection refused" in printed
    assert "check the connection" in printed


def test_pushing_without_a_token(hub, fails, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    printed = fails(PUSH)
    assert "needs a token" in printed
    assert "hf auth login" in printed
    assert "HF_TOKEN" in printed
    assert hub.asked == []


@pytest.mark.parametrize("line", [PUSH, PULL])
def test_a_token_that_the_hub_does_not_know(pushed, fails, monkeypatch, line):
    monkeypatch.setenv("HF_TOKEN", "hf_OtherToken")
    printed = fails(line)
    assert "does not accept the token" in printed
    assert "hf auth login" in printed


@pytest.mark.parametrize("existing", [True, False])
def test_a_token_that_may_only_read(pushed, fails, monkeypatch, existing):
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    printed = fails(PUSH if existing else "push diffusion/toy me/new")
    assert "the token does not allow this" in printed
    assert "may write" in printed


def test_a_repository_that_is_not_there(hub, fails):
    printed = fails(PULL)
    assert "no repository me/toy, or it is private" in printed
    assert "hf auth login" not in printed  # the user is


def test_a_private_repository_and_a_stranger(pushed, fails, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    printed = fails(PULL)
    assert "no repository me/toy, or it is private" in printed
    assert "hf auth login" in printed


def test_a_public_repository_and_a_stranger(pushed, theirs, monkeypatch):
    pushed.repositories["me/toy"].private = False
    monkeypatch.delenv("HF_TOKEN")
    assert lwdctl.pull("me/toy", workspace=theirs, progress=QUIET).artifact.name == "toy"


def test_a_revision_that_is_not_there(pushed, fails):
    printed = fails("pull me/toy@v9")
    assert "me/toy has no revision 'v9'" in printed
    assert f"{pushed.url}/me/toy/commits/main" in printed


def test_a_gated_repository(pushed, fails):
    pushed.refusals["GET", "/api/models/me/toy"] = 403, "GatedRepo"
    printed = fails(PULL)
    assert "is gated" in printed
    assert f"ask at {pushed.url}/me/toy" in printed


@pytest.mark.parametrize(
    ("line", "place"),
    [(PULL, ("GET", "/api/models/")), (PUSH, ("GET", "/api/models/")),
     (PUSH, ("POST", "/preupload/")), (PUSH, ("POST", "/api/repos/create"))],
)  # fmt: skip
def test_too_many_requests(hub, fails, line, place):
    hub.failure_headers = {"Retry-After": "7"}
    hub.refusals[place] = 429
    printed = fails(line)
    assert "too many requests (it names 7 seconds)" in printed
    assert "hint: wait, then run the same command again" in printed


def test_too_many_requests_for_files(pushed, fails):
    pushed.refusals["GET", "/resolve/"] = 429
    printed = fails(PULL)
    assert "429 Too Many Requests" in printed
    assert "run the same command again" in printed


@pytest.mark.parametrize("line", [PUSH, PULL])
def test_a_hub_out_of_order(hub, fails, line):
    hub.refusals["GET", "/api/models/"] = 503
    assert "the Hugging Face Hub responds 503" in fails(line)


@pytest.mark.parametrize("content", [b"<html>a log-in page</html>", b"[]", b"{", b'{"sha": 3}'])
def test_an_answer_that_is_no_answer(pushed, fails, monkeypatch, content):
    from hub_server import Handler

    def answer(self, name, repository, revision):
        self.send_bytes(content, "", None)

    monkeypatch.setattr(Handler, "information", answer)
    fails(PULL)


def test_a_repository_of_something_else(hub, fails):
    hub.repositories["me/toy"] = Repository(True)
    hub.repositories["me/toy"].commit({"README.md": b"mine", "pytorch_model.bin": b"x"})
    assert "holds no artifact of lwdctl" in fails(PULL)
    printed = fails(PUSH)
    assert "holds something that lwdctl did not push" in printed
    assert hub.requests("POST", "commit") == []


@pytest.mark.parametrize(
    "name",
    ["toy", "a/b/c", "../x", "a/..", "a/b@", "a/b@../x", "a /b", "a/b\n", "a/b@x y", "/a/b",
     "a/b.git", "a--b/c", "https://huggingface.co/a/b", ""],
)  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(ConfigError, match=r"the Hugging Face Hub|revision") as caught:
        Address.parse(name)
    assert caught.value.hint


def test_names():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert Address.parse("hf:a-b/c.d_e") == Address("a-b/c.d_e")
    assert Address.parse("_a/_b_").repository == "_a/_b_"
    assert Address.parse("a/b@refs/pr/3").revision == "refs/pr/3"
    assert Address.parse(f"a/b@{commit}").is_commit
    assert not Address.parse("a/b@main").is_commit
    assert str(Address.parse("hf:a/b@v1")) == "a/b@v1"


def test_a_push_names_no_revision(hub, ours):
    with pytest.raises(ConfigError, match="makes a revision"):
        push(ours, repository="me/toy@main")


def test_a_license_is_needed(hub, ours):
    with pytest.raises(ConfigError, match="no license") as caught:
        push(ours, license="")
    assert "--license apache-2.0" in caught.value.hint
    with pytest.raises(ConfigError, match="no license identifier") as caught:
        check_license("Apache-2.0")
    assert "did you mean 'apache-2.0'" in caught.value.hint
    assert hub.asked == []


def test_a_license_that_the_hub_does_not_know(hub, ours):
    with pytest.raises(DataError, match="license is not valid"):
        push(ours, license="unknown-to-the-hub")


@pytest.mark.parametrize("token", ["hf_Other\x01Token", "hf_OtherTöken", "hf_Other Token"])
@pytest.mark.parametrize("line", [PUSH, PULL])
def test_a_token_that_cannot_be_sent_is_not_shown(pushed, fails, monkeypatch, token, line):
    monkeypatch.setenv("HF_TOKEN", token)
    fails(line)


def test_no_traceback_shows_the_token(pushed, theirs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_Other\x01Token")
    with pytest.raises(DataError) as caught:
        lwdctl.pull("me/toy", workspace=theirs, progress=QUIET)
    assert "hf_Other" not in "".join(traceback.format_exception(caught.value))


def test_the_token_goes_to_the_hub_only(pushed, theirs):
    lwdctl.pull("me/toy", workspace=theirs, progress=QUIET)
    tokens = {item[1].startswith("/cdn/"): item[3] for item in pushed.asked}
    assert tokens == {False: TOKEN, True: ""}  # large files come from another host
