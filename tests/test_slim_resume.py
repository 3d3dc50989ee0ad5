"""Chapter inception_v3/slim_train: its training, killed between two saves and resumed, with one
worker and with two, ends as if nothing had happened."""

import json
import os
import re
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, Lesson, start_child
from test_slim_train import (
    EVERY,
    SCRIPT,
    STEM,
    STEPS,
    flags,
    small_network,
    state_of,
    train,
    without_times,
    write_records,
)

from models.classifier import load_classifier
from utils import training


def child(kill_after: str, *flags: str) -> None:
    """The lesson in a process of its own, killed when so many steps are done; its state goes into
    the run's folder."""
    deal = training.TrainingRun.deal

    def kill(self: Any, *batch: Any) -> Any:
        if self.step == int(kill_after):
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no -9
        return deal(self, *batch)

    training.TrainingRun.deal = kill
    path = str(ROOT / SCRIPT)
    sys.argv = [path, "--quick", *flags]
    with small_network(dropout=False):
        variables = runpy.run_path(path, run_name="__main__")
    np.savez(variables["run"].folder / "state.npz", **state_of(variables))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def whole(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lesson, dict]:
    """A training that nobody stopped, without dropout, whose dice are each replica's own."""
    lesson = train(records, tmp_path_factory.mktemp("whole"), *STEM, dropout=False)
    return lesson, state_of(lesson.variables)


def test_killed_between_two_saves_it_ends_as_if_it_had_not_been(whole, records, tmp_path):
    run = ("--run-dir", tmp_path / "run", *flags(records, tmp_path), *STEM)
    process = start_child("test_slim_resume", "5", *run)  # the heads' phase ends with step 6
    output, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, 1, 2), output
    assert not (tmp_path / "run" / "result.json").exists()
    assert not any((tmp_path / "best").iterdir())
    resumed = train(records, tmp_path, *STEM, dropout=False)
    assert "Going on after step 4" in resumed.output
    steps = [int(step) for step in re.findall(r"^step (\d+) after", resumed.output, re.M)]
    assert steps == list(range(6, STEPS + 1, EVERY))
    one, other = whole[1], state_of(resumed.variables)
    assert list(one) == list(other)
    for name, mine in one.items():
        np.testing.assert_array_equal(mine, other[name], err_msg=name)
    histories = [without_times(lesson.result["history"]) for lesson in (whole[0], resumed)]
    assert histories[0] == histories[1]
    models = [load_classifier(f / "best").model for f in (tmp_path, whole[0].folder.parent)]
    for mine, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def pair(kill_after: int, records: Path, folder: Path) -> list[tuple[int, str]]:
    """Two workers, to their end: exit status and output of each."""
    with socket.socket() as one, socket.socket() as other:
        for some in (one, other):
            some.bind(("localhost", 0))
        addresses = [f"localhost:{some.getsockname()[1]}" for some in (one, other)]
    run = ("--run-dir", folder / "run", *flags(records, folder), *STEM)
    processes = [
        start_child(
            "test_slim_resume",
            *(str(kill_after), *run, "--strategy", "multi-worker"),
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in (0, 1)
    ]
    deadline = time.monotonic() + 300
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes) or time.monotonic() > deadline:
                time.sleep(1)  # the other waits for ever
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    return [(process.wait(), process.communicate()[0]) for process in processes]


def test_two_workers_killed_and_resumed_end_as_one(whole, records, tmp_path):
    killed = pair(5, records, tmp_path)
    assert all(status not in (0, 1, 2) for status, _ in killed), killed
    resumed = pair(-1, records, tmp_path)
    assert [status for status, _ in resumed] == [0, 0], resumed
    assert all("Going on after step 4" in output for _, output in resumed)
    states = []
    for folder in (tmp_path / "run", tmp_path / "run" / "worker_1"):
        with np.load(folder / "state.npz") as arrays:
            states.append(dict(arrays))
    for name, alone in whole[1].items():
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
        scale = np.abs(alone).max()
        np.testing.assert_allclose(states[0][name], alone, atol=0.01 * scale, err_msg=name)
    assert load_classifier(tmp_path / "best")
