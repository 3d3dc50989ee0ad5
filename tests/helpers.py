"""What the tests share: running a script as its user does, and reading what it left."""

import ast
import contextlib
import gc
import importlib.util
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from utils.run import LIST

ROOT = Path(__file__).resolve().parents[1]


def run_program(
    script: str, *flags: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` (relative to the project) with this Python, offline, and return its exit
    status and texts."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=cwd,
        env=os.environ | {"COURSE_OFFLINE": "1", "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


def start_child(module: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start the function ``child`` of a test module as a program; what it prints goes into one
    pipe."""
    program = f"import sys, {module} as t; t.child(*sys.argv[1:])"
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    known = {"PYTHONPATH": os.pathsep.join(folders), "PYTHONUTF8": "1", "COURSE_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | known | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def make_example(**values: Any) -> Any:
    """A ``tf.train.Example`` with a feature for each value: bytes, numbers, or lists of them."""
    import tensorflow as tf

    features = {}
    for name, value in values.items():
        one_kind = np.ravel(np.array(value, object)).tolist()  # bytes keep zeros at their end
        some = [int(v) if isinstance(v, np.integer) else v for v in one_kind]
        if isinstance(some[0], bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=some))
        elif isinstance(some[0], int):
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=some))
        else:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=some))
    return tf.train.Example(features=tf.train.Features(feature=features))


@dataclass(frozen=True)
class Finished:
    """A script's run that succeeded: what it printed, its folder and its ``result.json``."""

    output: str
    folder: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        return self.result["metrics"]

    @property
    def figures(self) -> list[str]:
        """The figures by their names: ``curves`` is ``curves.png``, or ``curves-1.png`` where that
        name was taken."""
        return [re.sub(r"(-\d+)?\.png$", "", figure) for figure in self.result["figures"]]

    def events(self, name: str = "") -> "Events":
        """The event files of the TensorBoard run ``name``."""
        return Events(self.folder / name)


def foreign_files(script: str) -> dict[str, bytes]:
    """What a run folder may hold already that ``script`` did not leave there: name to content.
    Among them are files whose names the script will want."""
    source = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    saved = [c.args[1] for c in calls if getattr(c.func, "attr", "") == "save_figure"]
    figures = [f"{name.value}.png" for name in saved if isinstance(name, ast.Constant)]
    events = "events.out.tfevents.1700000000.elsewhere.1.0.v2"
    names = ["result.json", "backup/thesis.txt", "train/notes.txt", *figures]
    files = {name: f"not of the course: {name}".encode() for name in names}
    return files | {events: b"", f"train/{events}": b""}  # event files that end before they begin


def assert_costs_nothing(folder: Path, foreign: dict[str, bytes]) -> None:
    """The ``foreign`` files are as they were, and the next run would remove all others."""
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name, content in foreign.items():
        assert name in left, f"{name} was removed"
        assert (folder / name).read_bytes() == content, f"{name} was changed"
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    unlisted = left - {*foreign, LIST} - set(listed["files"])
    assert not unlisted, "no later run would remove it"


def read_result(folder: Path) -> dict[str, Any]:
    """The result in a run's folder; another file may have taken the name ``result.json``."""
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    (name,) = (name for name in listed["files"] if re.fullmatch(r"result(-\d+)?\.json", name))
    return json.loads((folder / name).read_text(encoding="utf-8"))


def run_quick(script: str, folder: Path, *flags: str | Path) -> Finished:
    """Run ``script --quick`` into ``folder``, which holds other files, and check what every script
    promises."""
    foreign = foreign_files(script)
    for name, content in foreign.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    done = run_program(script, "--quick", "--run-dir", folder, *flags)
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert_costs_nothing(folder, foreign)
    result = read_result(folder)
    assert result["script"] == script
    assert result["arguments"]["quick"] is True
    assert result["metrics"]
    assert all(math.isfinite(value) for value in result["metrics"].values())
    assert set(result["versions"]) == {"python", "tensorflow", "keras", "numpy"}
    assert isinstance(result["data"]["stand_in"], bool)
    for figure in result["figures"]:
        with Image.open(folder / figure) as image:
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(1 << 24)) > 2, f"{figure} is blank"
    finished = Finished(done.stdout, folder, result)
    if finished.figures:
        assert set(finished.figures) <= finished.events("figures").tags("images")
    assert "tensorboard" in done.stdout.lower().splitlines()[-1]
    return finished


@dataclass(frozen=True)
class Lesson(Finished):
    """A lesson's run in this process; ``variables`` are its names at the end."""

    variables: dict[str, Any]


def run_lesson(script: str, folder: Path, *flags: str | Path) -> Lesson:
    """Run a top-to-bottom ``script --quick`` in this process, offline, into ``folder``.

    What a script changes for its process is put back: flags, hooks, environment, warnings,
    TensorFlow's determinism. Layers are named as in a fresh process. Its figures are closed and
    its event files are complete; its models and functions go on working.
    """
    import keras
    import matplotlib.pyplot as plt
    import tensorflow as tf
    from tensorflow.python.framework.config import disable_op_determinism

    path = str(ROOT / script)
    output = io.StringIO()
    keras.utils.clear_session()
    try:
        with (
            mock.patch.dict(os.environ, COURSE_OFFLINE="1"),
            mock.patch.object(
                sys, "argv", [path, "--quick", "--run-dir", str(folder), *map(str, flags)]
            ),
            mock.patch.object(sys, "path", [str(Path(path).parent), *sys.path]),
            mock.patch.object(sys, "excepthook", sys.excepthook),
            contextlib.chdir(ROOT),
            contextlib.redirect_stdout(output),
            warnings.catch_warnings(),
            plt.rc_context(),
        ):
            variables = runpy.run_path(path, run_name="__main__")
    except BaseException:
        print(output.getvalue()[-3000:])  # pytest shows it with the failure
        raise
    finally:
        plt.close("all")
        disable_op_determinism()
        tf.config.run_functions_eagerly(False)
        tf.summary.experimental.set_step(None)
        for writer in gc.get_objects():
            if issubclass(type(writer), tf.summary.SummaryWriter):
                with contextlib.suppress(Exception):  # of a graph that is gone
                    writer.flush()
    return Lesson(output.getvalue(), folder, read_result(folder), variables)


class Events:
    """The event files directly in a folder, as TensorBoard's own reader finds them."""

    def __init__(self, folder: Path) -> None:
        assert list(folder.glob("events.out.tfevents.*")), f"no event file in {folder}"
        keep_all = {"tensors": 0, "scalars": 0, "images": 0, "histograms": 0}
        self._reader = EventAccumulator(str(folder), size_guidance=keep_all)
        self._reader.Reload()
        self.has_graph = bool(self._reader.Tags()["graph"])

    def graph_nodes(self) -> set[str]:
        """The names of the operations in the graph, those inside its functions included."""
        graph = self._reader.Graph()
        functions = (node for f in graph.library.function for node in f.node_def)
        return {node.name for node in (*graph.node, *functions)}

    def tags(self, plugin: str) -> set[str]:
        """The tags that a tab shows: plugin ``"scalars"``, ``"images"``, ``"histograms"`` …"""
        return set(self._reader.PluginTagToContent(plugin))

    def values(self, tag: str) -> dict[int, np.ndarray]:
        """What stands under a tag: step to array. Scalars have shape []; an image is a list of
        width, height and PNG bytes; a histogram has rows of left edge, right edge, count."""
        return {
            event.step: tensor_util.make_ndarray(event.tensor_proto)
            for event in self._reader.Tensors(tag)
        }


def load_script(script: str) -> ModuleType:
    """Import a script (one with functions and ``main()``) as a module, to test its parts."""
    path = ROOT / script
    name = path.with_suffix("").relative_to(ROOT).as_posix().replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
