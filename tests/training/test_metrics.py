import json

from lwdctl.training.loop import MetricLog


def test_every_row_is_a_plain_line_too(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(50, {"kl": 1.25, "seconds": 10.0}, 1000)
        log.write(100, {"kl": 1.0, "held_out_kl": 1.5, "seconds": 20.0}, 1000)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(" UTC  ")[2] for line in lines] == [
        "update 50/1000 (5 %), 0:03:10 left: kl 1.25, seconds 10",
        "update 100/1000 (10 %), 0:03:00 left: kl 1, held_out_kl 1.5, seconds 20",
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_text_keeps_what_a_resumed_run_does_again(tmp_path):
    with MetricLog(tmp_path) as log:
        for update in (1, 2, 3):
            log.write(update, {"kl": 1.0, "seconds": 1.0}, 4)
    with MetricLog(tmp_path, done=2) as log:
        log.write(3, {"kl": 2.0, "seconds": 1.0}, 4)
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(row["update"], row["kl"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    told = [line.partition(" UTC  ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert told[3] == "resuming from update 2"
    assert [line[:8] for line in told] == [
        "update 1",
        "update 2",
        "update 3",
        "resuming",
        "update 3",
    ]


def test_the_text_says_that_training_began_again(tmp_path):
    """A process that is killed before its first checkpoint leaves a log, and no step to go on."""
    for _ in range(2):
        with MetricLog(tmp_path) as log:
            log.write(1, {"kl": 1.0, "seconds": 1.0}, 4)
    told = [line.partition(" UTC  ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert told[1] == "resuming from update 0"
    assert len(told) == 3


def test_the_text_says_what_ended_training(tmp_path):
    try:
        with MetricLog(tmp_path):
            raise ValueError("the loss is nan")
    except ValueError:
        pass
    assert (
        (tmp_path / "log.txt").read_text().rstrip().endswith("ended by ValueError: the loss is nan")
    )
