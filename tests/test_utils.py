"""utils/run.py and utils/summary.py: flags, the run folder, result.json, TensorBoard's files."""

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


def test_run_dir_again_drops_the_old_result_and_the_old_events_of_that_run(start):
    old = start("--run-dir", "run")
    names = ["", "train", "validation"]
    for name in names:
        folder = Path(old.log_dir(name))
        assert folder == old.folder / name
        (folder / "events.out.tfevents.1.host.1.0.v2").write_bytes(b"old")
        (folder / "model.keras").write_bytes(b"kept")
    old.finish({"loss": 1})
    assert (old.folder / "result.json").exists()
    new = start("--run-dir", "run")
    assert new.folder == old.folder
    assert not (new.folder / "result.json").exists(), "or it would pass for this run's result"
    new.log_dir("train")
    left = {name: sorted(path.name for path in (new.folder / name).glob("e*")) for name in names}
    assert left["train"] == []
    assert left[""] == left["validation"] == ["events.out.tfevents.1.host.1.0.v2"]
    new.log_dir()
    assert not list(new.folder.glob("events*"))
    assert list((new.folder / "validation").glob("events*"))
    assert all((new.folder / name / "model.keras").exists() for name in names)


OLD_EVENTS = "events.out.tfevents.1.host.1.0.v2"


def interrupted(run: Run) -> None:
    """Leave what a training leaves that was stopped after an epoch."""
    (Path(run.log_dir("train")) / OLD_EVENTS).write_bytes(b"old")
    run.backup.mkdir()
    (run.backup / "epoch").write_text("1", encoding="utf-8")


def test_an_interrupted_run_goes_on_with_its_backup_and_events(start):
    flags = ("--run-dir", "run", "--epochs", "3")
    first = start(*flags)
    assert not first.resuming
    interrupted(first)
    second = start(*flags, "--show")
    assert second.resuming
    assert (second.backup / "epoch").read_text(encoding="utf-8") == "1"
    assert (Path(second.log_dir("train")) / OLD_EVENTS).exists()
    second.args.show = False  # no window here
    second.finish({"loss": 1})
    assert not second.backup.exists()
    third = start(*flags)
    assert not third.resuming
    assert not (Path(third.log_dir("train")) / OLD_EVENTS).exists()


@pytest.mark.parametrize("change", [["--epochs", "4"], ["--quick"], ["--seed", "2"]])
def test_a_run_with_other_settings_does_not_go_on(start, change):
    interrupted(start("--run-dir", "run"))
    other = start("--run-dir", "run", *change)
    assert not other.resuming
    assert not other.backup.exists()
    assert not (Path(other.log_dir("train")) / OLD_EVENTS).exists()


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
    assert done.stdout.strip().startswith("Stopped. ")
    assert "my run" in done.stdout
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


def test_a_figure_becomes_pixels():
    from matplotlib.figure import Figure

    from utils.summary import figure_to_image

    figure = Figure(figsize=(2, 1), dpi=50, facecolor="white")
    axes = figure.add_axes((0, 0, 0.5, 1))  # the left half
    axes.set_axis_off()
    axes.imshow([[0]], cmap="gray", aspect="auto")
    image = figure_to_image(figure)
    assert image.dtype == np.uint8
    assert image.shape == (1, 50, 100, 4)
    np.testing.assert_array_equal(image[0, 2:-2, 2:48], np.tile([0, 0, 0, 255], (46, 46, 1)))
    np.testing.assert_array_equal(image[0, :, 52:], np.full((50, 48, 4), 255))
