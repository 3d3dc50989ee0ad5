"""What the tests share: running a script as its user does, and reading what it left."""

import contextlib
import gc
import importlib.util
import io
import json
import os
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


@dataclass(frozen=True)
class Finished:
    """A script's run that succeeded: what it printed, its folder and its ``result.json``."""

    output: str
    folder: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        return self.result["metrics"]

    def events(self, name: str = "") -> "Events":
        """The event files of the TensorBoard run ``name``."""
        return Events(self.folder / name)


def run_quick(script: str, folder: Path, *flags: str | Path) -> Finished:
    """Run ``script --quick`` into ``folder`` and check what every script promises."""
    done = run_program(script, "--quick", "--run-dir", folder, *flags)
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["script"] == script
    assert result["arguments"]["quick"] is True
    assert result["metrics"]
    assert set(result["versions"]) == {"python", "tensorflow", "keras", "numpy"}
    assert isinstance(result["data"]["stand_in"], bool)
    for figure in result["figures"]:
        with Image.open(folder / figure) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24)) > 2, f"{figure} is blank"
        assert figure.removesuffix(".png") in Events(folder / "figures").tags("images")
    assert "tensorboard" in done.stdout.lower().splitlines()[-1]
    return Finished(done.stdout, folder, result)


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
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Lesson(output.getvalue(), folder, result, variables)


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
