"""utils/run.py, utils/summary.py, utils/figures.py and ``ResumableRun``: flags, the run folder and
what it costs nobody, ``result.json``, TensorBoard's files, figures."""

import io
import json
import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Events, run_program
from PIL import Image

from utils import run as run_module
from utils.run import (
    LIST,
    CourseParser,
    Run,
    format_metric,
    make_parser,
    positive_float,
    positive_int,
    readable,
    seed_int,
    tensorboard_command,
    write_json,
    written_whole,
)

# ---- flags ---------------------------------------------------------------------------------


def parser_with_epochs() -> CourseParser:
    parser = make_parser("A script.")
    parser.add_argument("--epochs", type=positive_int, default=12, quick=2, help="rounds")
    parser.add_argument("--rate", type=positive_float, default=0.5, help="speed")
    return parser


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        ([], 12),
        (["--quick"], 2),
        (["--quick", "--epochs", "7"], 7),
        (["--epochs", "7", "--quick"], 7),
        (["--quick", "--epochs", "12"], 12),  # as the default, but asked for
    ],
)
def test_a_flag_that_was_given_wins_over_quick(flags, epochs):
    args = parser_with_epochs().parse_args(flags)
    assert (args.epochs, args.rate, args.quick) == (epochs, 0.5, "--quick" in flags)


def test_the_common_flags_and_their_defaults():
    args = make_parser("A script.").parse_args([])
    assert vars(args) == {"quick": False, "seed": 1, "run_dir": None, "show": False}


def test_help_shows_the_text_and_both_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        parser_with_epochs().parse_args(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "A script." in shown
    assert "rounds (default: 12; with --quick 2)" in shown
    assert "speed (default: 0.5)" in shown
    assert "(default: 1)" in shown, "the seed's"


def test_a_notebooks_own_command_line_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(run_module, "IN_NOTEBOOK", True)
    assert parser_with_epochs().parse_args().epochs == 12


@pytest.mark.parametrize(
    ("kind", "good", "bad", "wanted"),
    [
        (positive_int, ["1", "60000"], ["0", "-3", "2.5", "x", "", "1e3"], "a whole number from 1"),
        (seed_int, ["0", "4294967295"], ["-1", "4294967296", "x"], "a whole number from 0"),
        (positive_float, ["1e-9", "3"], ["0", "-1", "inf", "nan", "x"], "a number above 0"),
    ],
)
def test_numbers_out_of_range_are_refused_in_a_sentence(kind, good, bad, wanted, capsys):
    parser = make_parser("A script.")
    parser.add_argument("--number", type=kind)
    for text in good:
        assert parser.parse_args([f"--number={text}"]).number == float(text)
    for text in bad:
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([f"--number={text}"])
        assert caught.value.code == 2
        assert f"argument --number: {text!r} is not {wanted}" in capsys.readouterr().err


def test_an_abbreviated_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser_with_epochs().parse_args(["--epoch", "3"])
    assert "--epoch" in capsys.readouterr().err


# ---- files ---------------------------------------------------------------------------------


def test_written_whole_renames_only_what_succeeded(tmp_path):
    path = tmp_path / "new" / "model.keras"
    with written_whole(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".keras"
        temporary.write_text("first", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "first"
    with pytest.raises(RuntimeError, match="no more"), written_whole(path) as temporary:
        temporary.write_text("half of the sec", encoding="utf-8")
        raise RuntimeError("no more")
    assert path.read_text(encoding="utf-8") == "first"
    assert list(path.parent.iterdir()) == [path]


def test_write_json_writes_utf8_or_nothing(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"name": "Löwenzahn ≤ 3"})
    before = path.read_bytes()
    assert "Löwenzahn ≤ 3" in before.decode("utf-8")
    with pytest.raises(AttributeError):
        write_json(path, {"name": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_readable_is_relative_below_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert readable(tmp_path / "here" / "runs" / "a") == str(Path("runs", "a"))
    assert readable(Path("runs")) == "runs"
    assert readable(tmp_path / "here") == "."
    assert readable(tmp_path / "elsewhere") == str((tmp_path / "elsewhere").resolve())


@pytest.mark.skipif(os.name == "nt", reason="checks the quoting of POSIX shells")
@pytest.mark.parametrize("on_path", [True, False])
def test_the_tensorboard_command_can_be_pasted(tmp_path, monkeypatch, on_path):
    binary = tmp_path / "my venv" / "tensorboard"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n", encoding="utf-8")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent) if on_path else str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(binary.with_name("python")))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(tensorboard_command(tmp_path / "my runs" / "it's one"))
    program = "tensorboard" if on_path else "my venv/tensorboard"
    assert words == [program, "--logdir", "my runs/it's one"]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("test_accuracy", 0.98765, "test accuracy 98.77%"),
        ("test_loss", 0.0123456, "test loss 0.01235"),
        ("steps", 12345, "steps 12,345"),
    ],
)
def test_metrics_as_a_person_reads_them(name, value, shown):
    assert format_metric(name, value) == shown


# ---- the run -------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a run as ``chapter/01_script.py`` of a project in ``tmp_path`` would."""
    monkeypatch.setattr(run_module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.chdir(tmp_path)

    def start(*flags: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["01_script.py", *flags])
        return Run(parser_with_epochs(), tmp_path / "chapter" / "01_script.py")

    return start


def test_each_run_gets_a_folder_of_its_own(start, tmp_path):
    runs = [start() for _ in range(4)] + [start("--quick") for _ in range(2)]
    folders = [run.folder for run in runs]
    assert len(set(folders)) == 6
    for run in runs:
        assert run.script == "chapter/01_script.py"
        assert run.folder.is_dir()
        assert run.folder.parent == tmp_path / "runs" / "chapter" / "01_script"
        quick = "-quick" if run.args.quick else ""
        assert re.fullmatch(rf"\d{{8}}-\d{{6}}-\d{{6}}{quick}", run.folder.name)


def test_run_dir_is_the_folder_itself(start, tmp_path):
    run = start("--run-dir", "deep/my run")
    assert run.folder == (tmp_path / "deep" / "my run").resolve()
    assert run.folder.is_dir()
    assert not (tmp_path / "runs").exists()


def test_a_run_dir_that_can_not_be_made_is_refused_in_a_sentence(start, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        start("--run-dir", str(tmp_path / "file" / "run"))
    assert caught.value.code == 2
    assert f"{tmp_path / 'file'}" in capsys.readouterr().err


def test_skip_ends_with_a_sentence_and_a_status_of_its_own(start, capsys):
    run = start()
    with pytest.raises(SystemExit) as caught:
        run.skip("no weights: fetch them with …")
    assert caught.value.code == run_module.SKIPPED == 77
    assert capsys.readouterr().out == "Skipped: no weights: fetch them with …\n"


# ---- a run folder never costs anybody a file -----------------------------------------------


BEGAN = int(time.time())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, str]:
    """The files in a folder and those below it, by their names, the run's list left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LIST]
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in files}


def event_file(seconds: int = 100_000, process: str = "") -> str:
    """The name of an event file made ``seconds`` from when the tests began, by this process if
    none is named. That TensorFlow names its own so is tested further below."""
    process = process or f"{socket.gethostname()}.{os.getpid()}"
    return f"events.out.tfevents.{BEGAN + seconds}.{process}.0.v2"


def leave(run: Run) -> None:
    """Write what a lesson leaves: files, a folder with a file in it, event files, its result."""
    for name in ("model.keras", "tables/scores.csv"):
        write(run.path(name), "own")
    write(run.path("excerpt") / "labels.txt", "own")
    write(Path(run.log_dir(), event_file()), "own")
    write(Path(run.log_dir("train"), event_file()), "own")
    run.finish({"loss": 1})


FOREIGN = [
    "backup/thesis.txt",
    "model.keras",
    "result.json",
    "notes/result.json",
    "train/notes.txt",
    "excerpt/notes.txt",
    "tables/notes.txt",
    event_file(-1000),  # by a process that had this one's number
    event_file(process="elsewhere.1"),
    f"train/{event_file(process='elsewhere.1')}",
]


@pytest.mark.parametrize("planted", ["before", "after"])
def test_other_files_are_neither_removed_nor_overwritten(start, tmp_path, planted):
    folder = tmp_path / "run"
    if planted == "after":  # a first run was here, and the files came into its folders
        leave(start("--run-dir", "run"))
    own = content(folder) if folder.exists() else {}
    foreign = {name: f"foreign {name}" for name in FOREIGN if name not in own}
    for name, text in foreign.items():
        write(folder / name, text)
    for _ in range(3):
        leave(start("--run-dir", "run"))
        left = content(folder)
        assert {name: left[name] for name in foreign} == foreign


def test_the_next_run_removes_what_the_last_one_left(start, tmp_path):
    folder = tmp_path / "run"
    leave(start("--run-dir", "run"))
    assert set(content(folder)) == {
        "model.keras",
        "tables/scores.csv",
        "excerpt/labels.txt",
        "result.json",
        event_file(),
        f"train/{event_file()}",
    }
    start("--run-dir", "run")
    assert [path.name for path in folder.iterdir()] == [LIST], "empty folders go as well"


def test_a_name_that_is_taken_gives_another_name(start, tmp_path):
    write(tmp_path / "run" / "model.keras", "foreign")
    write(tmp_path / "run" / "model-1.keras", "foreign")
    for _ in range(2):
        run = start("--run-dir", "run")
        path = run.path("model.keras")
        assert path == run.folder / "model-2.keras" == run.path("model.keras")
        write(path, "own")


def test_a_list_that_is_not_ours_costs_nothing(start, tmp_path):
    write(tmp_path / "run" / "model.keras", "foreign")
    for text in (
        "",
        "{",
        "[]",
        "3",
        '{"files": 3}',
        '{"files": [], "events": [3]}',
        '{"files": {}}',
    ):
        (tmp_path / "run" / LIST).write_text(text, encoding="utf-8")
        run = start("--run-dir", "run")
        leave(run)
        assert (tmp_path / "run" / LIST).read_text("utf-8") == text
        assert (tmp_path / "run" / "model.keras").read_text("utf-8") == "foreign"


def test_a_list_cut_short_costs_nothing(start, tmp_path):
    leave(start("--run-dir", "run"))
    path = tmp_path / "run" / LIST
    path.write_text(path.read_text("utf-8")[:-20], encoding="utf-8")
    before = content(tmp_path / "run")
    leave(start("--run-dir", "run"))
    left = content(tmp_path / "run")
    assert {name: left[name] for name in before} == before


def test_a_list_reaches_nothing_outside_the_folder(start, tmp_path):
    write(tmp_path / "outside.txt", "foreign")
    write(tmp_path / "other" / "outside.txt", "foreign")
    leave(start("--run-dir", "run"))
    path = tmp_path / "run" / LIST
    left = json.loads(path.read_text("utf-8"))
    names = ["../outside.txt", "excerpt/../../outside.txt", "..", ".", str(tmp_path / "other")]
    names += [str(tmp_path / "outside.txt"), "../other/outside.txt"]
    left["files"] += names
    path.write_text(json.dumps(left), encoding="utf-8")
    start("--run-dir", "run")
    assert (tmp_path / "outside.txt").read_text("utf-8") == "foreign"
    assert (tmp_path / "other" / "outside.txt").read_text("utf-8") == "foreign"
    assert content(tmp_path / "run") == {}, "what is the run's own goes all the same"


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_links_are_not_followed(start, tmp_path):
    write(tmp_path / "precious" / "labels.txt", "foreign")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.keras").symlink_to(tmp_path / "precious" / "new.txt")  # to nothing
    run = start("--run-dir", "run")
    leave(run)
    assert run.path("model.keras").name == "model-1.keras"
    assert not (tmp_path / "precious" / "new.txt").exists()
    # Somebody moves what the run left to another place, and links to it.
    for name in ("result.json", "excerpt"):
        (run.folder / name).rename(tmp_path / "precious" / name)
        (run.folder / name).symlink_to(tmp_path / "precious" / name)
    before = content(tmp_path / "precious")
    leave(start("--run-dir", "run"))
    assert content(tmp_path / "precious") == before
    assert (run.folder / "model.keras").is_symlink()


def test_after_a_kill_the_event_files_go_with_the_next_run(start, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        '"""A script."""\n'
        "import os, signal, sys\n"
        "import tensorflow as tf\n"
        "from utils.run import Run, make_parser\n"
        "run = Run(make_parser(__doc__), __file__)\n"
        "for name in ('', 'train'):\n"
        "    with tf.summary.create_file_writer(run.log_dir(name)).as_default():\n"
        "        tf.summary.scalar('loss', 1.0, 0)\n"
        "        tf.summary.flush()\n"
        "tf.train.Checkpoint(step=tf.Variable(1)).save(run.path('checkpoints') / 'ckpt')\n"
        "run.path('model.keras').write_text('half of it')\n"
        "os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n",
        encoding="utf-8",
    )
    done = run_program(str(script), "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode != 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"train", "checkpoints"}
    assert len([*folder.rglob("events.out.tfevents.*")]) == 2, done.stderr
    assert len([*folder.rglob("ckpt-*")]) == 2
    for name in ("train/notes.txt", "checkpoints/notes.txt"):
        write(folder / name, "foreign")
    start("--run-dir", "run")
    assert set(content(folder)) == {"train/notes.txt", "checkpoints/notes.txt"}


# ---- a run that can go on ------------------------------------------------------------------


@pytest.fixture
def resume(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a resumable run as ``chapter/02_train.py`` of a project in ``tmp_path`` would."""
    from utils.training import ResumableRun

    def resume(*flags: str) -> ResumableRun:
        monkeypatch.setattr(sys, "argv", ["02_train.py", *flags])
        parser = parser_with_epochs()
        parser.add_argument("--resume", action="store_true")
        return ResumableRun(parser, tmp_path / "chapter" / "02_train.py")

    return resume


def interrupted(run: Any) -> dict[str, str]:
    """Leave what a training leaves that was stopped after a checkpoint, and say what it is."""
    write(Path(run.log_dir("train"), event_file()), "own")
    write(run.path("history.json"), "[1]")
    for name in ("checkpoint", "ckpt-7.index", "ckpt-7.data-00000-of-00001"):
        write(run.backup / "worker_0" / name, "7")
    return content(run.folder)


def test_an_interrupted_run_goes_on_with_what_it_left(resume):
    flags = ("--run-dir", "run", "--epochs", "3")
    first = resume(*flags)
    assert not first.resuming
    left = interrupted(first)
    for more in (["--show"], ["--resume"], []):
        second = resume(*flags, *more)
        assert second.resuming
        assert content(second.folder) == left
        assert second.backup == first.backup
        assert second.path("history.json") == first.path("history.json")
    second.finish({"loss": 1})
    assert not second.backup.exists()
    third = resume(*flags)
    assert not third.resuming
    assert content(third.folder) == {}, "of both processes nothing is left"


def test_resume_finds_the_newest_that_was_stopped(resume, capsys):
    runs = [resume("--epochs", epochs) for epochs in ("3", "3", "4", "3")]
    for run in runs[:3]:
        interrupted(run)
    folders = {*runs[0].runs.iterdir()}
    found = resume("--epochs", "3", "--resume")
    assert found.resuming
    assert found.folder == runs[1].folder, "the last one saved nothing, that before is another"
    assert {*found.runs.iterdir()} == folders, "no folder is left for nothing"
    found.finish({"loss": 1})
    assert resume("--epochs", "3", "--resume").folder == runs[0].folder
    with pytest.raises(SystemExit) as caught:
        resume("--epochs", "5", "--resume")
    assert caught.value.code == 2
    assert "no run with these settings was stopped in" in capsys.readouterr().err


@pytest.mark.parametrize("change", [["--epochs", "4"], ["--quick"], ["--seed", "2"]])
def test_a_run_with_other_settings_does_not_go_on(resume, change):
    interrupted(resume("--run-dir", "run"))
    write(Path("run", "backup", "thesis.txt"), "foreign")
    other = resume("--run-dir", "run", *change)
    assert not other.resuming
    assert content(other.folder) == {"backup/thesis.txt": "foreign"}
    interrupted(other)
    assert resume("--run-dir", "run", *change).resuming, "its own backup stands beside the other"


def test_a_run_with_another_data_folder_does_not_go_on(resume, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", "one")
    interrupted(resume("--run-dir", "run"))
    monkeypatch.setenv("COURSE_DATA", "two")
    assert not resume("--run-dir", "run").resuming


def test_ctrl_c_tells_how_to_go_on(resume, tmp_path, capsys):
    resume("--run-dir", "my run")
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[0] == "Stopped."
    assert words[-2:] == ["--run-dir", "my run"]


def test_a_finished_run_removes_its_checkpoints_and_nothing_else(resume):
    run = resume("--run-dir", "run")
    interrupted(run)
    write(run.backup / "thesis.txt", "foreign")
    run.finish({"loss": 1})
    left = {*content(run.folder)}
    assert left == {"backup/thesis.txt", f"train/{event_file()}", "history.json", "result.json"}
    assert "thesis" not in (run.folder / LIST).read_text("utf-8")


# ---- what a run leaves ---------------------------------------------------------------------


def test_finish_writes_result_json_and_prints_it(start, capsys):
    run = start("--quick", "--run-dir", "run", "--seed", "5")
    metrics = {"test_accuracy": np.float32(0.75), "test_loss": 0.5}
    data = {"source": "made up", "stand_in": True}
    run.finish(metrics, data=data, train_seconds=1.23456, parameters=42, race={"adam": 0.9})
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    assert 0 <= result.pop("seconds") < 60
    versions = result.pop("versions")
    assert set(versions) == {"python", "tensorflow", "keras", "numpy"}
    assert versions["numpy"] == np.__version__
    arguments = {"quick": True, "seed": 5, "run_dir": "run", "show": False}
    assert result == {
        "script": "chapter/01_script.py",
        "arguments": arguments | {"epochs": 2, "rate": 0.5},
        "seed": 5,
        "metrics": {"test_accuracy": 0.75, "test_loss": 0.5},
        "train_seconds": 1.23456,
        "parameters": 42,
        "data": data,
        "figures": [],
        "race": {"adam": 0.9},
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("Result: test accuracy 75.00%, test loss 0.5")
    assert "STAND-IN" in lines[-2]
    assert lines[-1] == f"TensorBoard: {tensorboard_command(run.folder)}"
    assert shlex.split(lines[-1])[-2:] == ["--logdir", "run"]


def test_without_data_nothing_is_called_a_stand_in(start, capsys):
    run = start("--run-dir", "run")
    run.finish({"loss": 1})
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    assert result["data"] == {"source": "made by the script", "stand_in": False}
    assert result["train_seconds"] is None
    assert result["parameters"] is None
    assert "STAND-IN" not in capsys.readouterr().out


def test_a_figure_is_saved_and_shown_in_tensorboard(start, capsys):
    import matplotlib.pyplot as plt

    run = start("--run-dir", "run")
    figure, axes = plt.subplots(figsize=(4, 3))
    axes.plot([0, 1])
    path = run.save_figure(figure, "fit")
    second = run.save_figure(figure, "again")
    plt.close(figure)
    run.finish({"loss": 1})
    assert path == run.folder / "fit.png"
    assert f"Figure: {Path('run', 'fit.png')}" in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.size == (480, 360)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 2
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    assert result["figures"] == ["fit.png", "again.png"]
    events = Events(run.folder / "figures")
    assert events.tags("images") == {"fit", "again"}
    _, _, png = events.values("fit")[0]
    with Image.open(io.BytesIO(png)) as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 2
    assert [p.name for p in second.parent.glob("*.tmp*")] == []


def test_other_errors_keep_their_traceback(start, capsys):
    start("--run-dir", "run")
    try:
        raise ValueError("an error")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "ValueError: an error" in shown


def test_ctrl_c_prints_a_sentence_and_no_traceback(tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(
        '"""A script."""\n'
        "from utils.run import Run, make_parser\n"
        "run = Run(make_parser(__doc__), __file__)\n"
        "raise KeyboardInterrupt\n",
        encoding="utf-8",
    )
    done = run_program(str(script), "--run-dir", tmp_path / "my run", cwd=tmp_path)
    assert done.stdout.strip() == "Stopped."
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


# ---- summary -------------------------------------------------------------------------------


def written(folder: Path, name: str, *values: Any) -> Events:
    """Variable summaries of ``values`` at the steps 0, 1, …, read back."""
    import tensorflow as tf

    from utils.summary import variable_summaries

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for step, value in enumerate(values):
            variable_summaries(name, value, step)
    writer.close()
    return Events(folder)


def as_types(values: np.ndarray) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    return {
        "array of float64": values.astype(np.float64),
        "tensor of float32": tf.constant(values, tf.float32),
        "tf variable": tf.Variable(values, dtype=tf.float32),
        "keras variable": keras.Variable(values, dtype="float32"),
    }


def test_variable_summaries_agree_with_numpy(tmp_path):
    values = np.random.default_rng(1).normal(3, 2, (20, 30))
    events = written(tmp_path, "layer/w", *as_types(values).values(), np.float32(7), [True, False])
    scalars = ["mean", "stddev", "max", "min"]
    assert events.tags("scalars") == {f"layer/w/{scalar}" for scalar in scalars}
    assert events.tags("histograms") == {"layer/w/histogram"}
    for scalar, expected in {
        "mean": [values.mean()] * 4 + [7, 0.5],
        "stddev": [values.std()] * 4 + [0, 0.5],
        "max": [values.max()] * 4 + [7, 1],
        "min": [values.min()] * 4 + [7, 0],
    }.items():
        found = events.values(f"layer/w/{scalar}")
        assert list(found) == [0, 1, 2, 3, 4, 5]
        np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5, err_msg=scalar)


def test_the_histogram_agrees_with_numpy(tmp_path):
    values = np.random.default_rng(1).normal(3, 2, (20, 30)).astype(np.float32)
    histogram = written(tmp_path, "w", values).values("w/histogram")[0]  # [buckets, 3]
    left, right, counts = histogram.T
    assert counts.sum() == 600
    assert left[0] == pytest.approx(values.min())
    assert right[-1] == pytest.approx(values.max())
    np.testing.assert_allclose(left[1:], right[:-1])
    expected, _ = np.histogram(values, bins=[*left, right[-1]])
    assert np.abs(counts - expected).sum() <= 4, "up to rounding at the edges"


def test_variable_summaries_within_a_tf_function(tmp_path):
    import tensorflow as tf

    from utils.summary import variable_summaries

    writer = tf.summary.create_file_writer(str(tmp_path))

    @tf.function
    def step(value: tf.Tensor, number: tf.Tensor) -> None:
        with writer.as_default():
            variable_summaries("v", value, number)

    for number in range(3):
        step(tf.constant([1.0, 2.0]) * number, tf.constant(number, tf.int64))
    writer.close()
    means = {step: float(mean) for step, mean in Events(tmp_path).values("v/mean").items()}
    assert means == {0: 0.0, 1: 1.5, 2: 3.0}


def test_nothing_to_summarise_is_an_error():
    from utils.summary import variable_summaries

    with pytest.raises(ValueError, match=r"w: a tensor of shape \(3, 0\) has nothing to"):
        variable_summaries("w", np.zeros((3, 0)), 0)


def test_the_graph_of_a_function_is_written(tmp_path):
    import tensorflow as tf

    from utils.summary import write_graph

    @tf.function
    def double_and_add(x: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("doubling"):
            twice = tf.multiply(x, 2.0, name="twice")
        return tf.add(twice, 1.0, name="plus_one")

    concrete = double_and_add.get_concrete_function(tf.TensorSpec([3], tf.float32))
    write_graph(str(tmp_path), concrete)
    events = Events(tmp_path)
    assert events.has_graph
    assert {"x", "doubling/twice", "plus_one"} <= events.graph_nodes()


# ---- figures -------------------------------------------------------------------------------


def test_a_grid_of_pictures_shows_all_of_them_in_order():
    import matplotlib.pyplot as plt

    from utils.figures import ORANGE, picture_grid

    images = np.arange(5)[:, None, None] * np.ones((5, 4, 4))
    figure = picture_grid(images, range(5), columns=2, wrong=[n == 3 for n in range(5)])
    shown = [axes.images[0].get_array().mean() for axes in figure.axes if axes.images]
    assert shown == [0, 1, 2, 3, 4]
    assert [axes.get_title() for axes in figure.axes] == ["0", "1", "2", "3", "4", ""]
    colours = [axes.title.get_color() for axes in figure.axes[:5]]
    assert [colour == ORANGE for colour in colours] == [False, False, False, True, False]
    plt.close(figure)


def test_curves_have_a_value_for_each_epoch_from_1():
    import matplotlib.pyplot as plt

    from utils.figures import curves

    figure = curves(
        {"loss": {"train": [3, 2, 1], "validation": [4, 3]}, "rate": {"Adam": [1]}}, log=True
    )
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"train": [[1, 3], [2, 2], [3, 1]], "validation": [[1, 4], [2, 3]]}
    assert [axes.get_title() for axes in figure.axes] == ["loss", "rate"]
    assert figure.axes[0].get_yscale() == "log"
    plt.close(figure)
