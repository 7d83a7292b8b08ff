from lwdctl.core.progress import TqdmProgress


def test_the_python_api_reports_on_stderr(capsys):
    progress = TqdmProgress()
    progress.message("reading")
    with progress.task("train", 2, "update") as task:
        task.advance(2, loss=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading" in err
    assert "loss=0.5" in err
