"""What every lesson of the first five chapters promises: it runs from the shell, costs nobody a
file, and gives the same result again."""

import pytest
from helpers import ROOT, assert_costs_nothing, foreign_files, run_lesson, run_quick

CHAPTERS = ("first_try", "linear", "tensorboard_demos", "cnn", "rnn")
LESSONS = [
    path.relative_to(ROOT).as_posix()
    for chapter in CHAPTERS
    for path in sorted((ROOT / chapter).glob("[0-9][0-9]_*.py"))
]
MODEL_OF = {"rnn/02_inside_the_lstm.py": "rnn/01_mnist_lstm.py"}  # takes the model of the other


@pytest.mark.parametrize("script", LESSONS)
def test_a_lesson_runs_leaves_other_files_alone_and_repeats_itself(script, tmp_path):
    flags: tuple = ()
    if script in MODEL_OF:
        before = run_lesson(MODEL_OF[script], tmp_path / "before")
        flags = ("--model", before.folder / "model.keras")
    first = run_quick(script, tmp_path / "run", *flags)
    files = {path for path in first.folder.rglob("*") if "tfevents" not in path.name}
    again = run_lesson(script, first.folder, *flags)
    assert_costs_nothing(again.folder, foreign_files(script))
    assert {path for path in first.folder.rglob("*") if "tfevents" not in path.name} == files
    assert len(first.result["figures"]) <= 3
    for name, value in first.metrics.items():
        if "seconds" not in name:
            assert again.metrics[name] == value, f"{name}: the same seed gives another result"
