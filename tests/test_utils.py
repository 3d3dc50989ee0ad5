"""utils/run.py and utils/figures.py: flags, the run folder and what it costs nobody,
``result.json``, TensorBoard's files, figures."""

import io
import json
import os
import re
import shlex
import sys
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
    positive_float,
    positive_int,
    readable,
    seed_int,
    write_json,
    written_whole,
)

# ---- flags ---------------------------------------------------------------------------------


def parser_with_epochs() -> CourseParser:
    parser = CourseParser("A script.")
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
    args = CourseParser("A script.").parse_args([])
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
    parser = CourseParser("A script.")
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


def test_a_run_dir_that_can_not_be_made_is_named_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run_program("first_try/01_hello_world.py", "--run-dir", tmp_path / "file" / "run")
    assert done.returncode == 1
    assert done.stdout.startswith("Stopped. ")
    assert f"{tmp_path / 'file'}" in done.stdout
    assert "Traceback" not in done.stderr


# ---- a run folder never costs anybody a file -----------------------------------------------


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, str]:
    """The files in a folder and those below it, by their names, the run's list left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LIST]
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in files}


EVENTS = "events.out.tfevents.1795700000.here.77.0.v2"  # what TensorFlow names an event file


def leave(run: Run) -> None:
    """Write what a lesson leaves: files, a folder with a file in it, event files, its result."""
    for name in ("model.keras", "tables/scores.csv"):
        write(run.path(name), "own")
    write(run.path("excerpt") / "labels.txt", "own")
    write(run.folder / EVENTS, "own")
    write(run.folder / "train" / EVENTS, "own")
    run.finish({"loss": 1})


FOREIGN = [
    "backup/thesis.txt",
    "model.keras",
    "result.json",
    "notes/result.json",
    "train/notes.txt",
    "excerpt/notes.txt",
    "tables/notes.txt",
    EVENTS.replace("here", "elsewhere"),
    f"train/{EVENTS.replace('here', 'elsewhere')}",
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
        EVENTS,
        f"train/{EVENTS}",
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
        '{"files": [3]}',
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
        "from utils.run import Run, CourseParser\n"
        "run = Run(CourseParser(__doc__), __file__)\n"
        "for name in ('', 'train'):\n"
        "    with tf.summary.create_file_writer(str(run.folder / name)).as_default():\n"
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
    told, program, *rest = shlex.split(lines[-1])
    assert (told, *rest) == ("TensorBoard:", "--logdir", "run")
    assert Path(program).exists()


def test_without_data_nothing_is_called_a_stand_in(start, capsys):
    run = start("--run-dir", "run")
    run.finish({"loss": 1})
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    assert result["data"] == {"source": "made by the script", "stand_in": False}
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
        "from utils.run import Run, CourseParser\n"
        "run = Run(CourseParser(__doc__), __file__)\n"
        "raise KeyboardInterrupt\n",
        encoding="utf-8",
    )
    done = run_program(str(script), "--run-dir", tmp_path / "my run", cwd=tmp_path)
    assert done.stdout.strip() == "Stopped."
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


def test_the_graph_of_a_function_is_written(start):
    import tensorflow as tf

    @tf.function
    def double_and_add(x: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("doubling"):
            twice = tf.multiply(x, 2.0, name="twice")
        return tf.add(twice, 1.0, name="plus_one")

    concrete = double_and_add.get_concrete_function(tf.TensorSpec([3], tf.float32))
    run = start()
    run.write_graph("graph", concrete)
    events = Events(run.folder / "graph")
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
    assert [axes.get_title() for axes in figure.axes] == ["0", "1", "2", "3", "4"]
    colours = [axes.title.get_color() for axes in figure.axes]
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
