"""utils/training.py: the learning rate, trainings that go on after a stop, and who trains where."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils.run import make_parser
from utils.training import (
    STRATEGIES,
    Place,
    Resumable,
    ResumableRun,
    place_in_cluster,
    warm_up_cosine,
)

# ---- the schedule --------------------------------------------------------------------------


@pytest.mark.parametrize(("warm_up", "start"), [(0.15, 0.1), (0.05, 0.0)])
def test_the_rate_rises_evenly_and_falls_along_half_a_cosine(warm_up, start):
    steps, peak = 200, 0.004
    schedule = warm_up_cosine(peak, steps, warm_up, start)
    rising = round(steps * warm_up)
    for step in range(steps + 1):
        if step < rising:
            wanted = peak * (start + (1 - start) * step / rising)
        else:
            wanted = peak * (1 + np.cos(np.pi * (step - rising) / (steps - rising))) / 2
        assert float(schedule(step)) == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    for few in (1, 2, 19):
        rates = [float(warm_up_cosine(peak, few, warm_up, start)(step)) for step in range(few)]
        assert np.isfinite(rates).all()
        assert max(rates) <= peak * (1 + 1e-6)


# ---- a training that goes on after a stop --------------------------------------------------


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C interrupts, whatever an earlier test left; the next test finds it as it was."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def resumable(folder: Path, resuming: bool) -> Resumable:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    run = SimpleNamespace(backup=folder / "backup", resuming=resuming)
    training = Resumable(run, Place("none"), model, optimizer)
    training.model, training.optimizer = model, optimizer
    return training


def steps(training: Resumable, count: int) -> None:
    for _ in range(count):
        variables = training.model.trainable_variables
        gradients = [tf.ones(v.shape) * (training.step + 1) for v in variables]
        training.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        training.step += 1


def everything(training: Resumable) -> list[np.ndarray]:
    return [v.value.numpy() for v in (*training.model.variables, *training.optimizer.variables)]


def test_a_training_goes_on_from_its_last_save(tmp_path, heard, capsys):
    first = resumable(tmp_path, False)
    assert (first.step, first.history, first.waited) == (0, [], 0)
    losses = [3.0, 1.0, 2.0, 1.0]
    assert [(steps(first, 2), first.note({"loss": loss}))[1] for loss in losses] == [
        *(True, True, False, False)  # an equal loss is no smaller one
    ]
    assert (first.best["step"], first.waited) == (4, 2)
    first.save()
    wanted = everything(first)
    steps(first, 2)
    first.note({"loss": 0.5})
    rows = first.history[:4]

    second = resumable(tmp_path, True)
    assert second.step == 8
    assert second.history == rows
    assert second.seconds >= rows[-1]["seconds"]
    for mine, theirs in zip(everything(second), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    steps(second, 2)
    for mine, theirs in zip(everything(second), everything(first), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert resumable(tmp_path, False).step == 0, "a run that is not resumed begins anew"


@pytest.mark.parametrize("name", ["ckpt-2.index", "ckpt-2.data-00000-of-00001"])
def test_a_damaged_checkpoint_is_named(tmp_path, heard, name):
    first = resumable(tmp_path, False)
    steps(first, 2)
    first.save()
    path = tmp_path / "backup" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"can't read the checkpoint .*ckpt-2"):
        resumable(tmp_path, True)


def test_ctrl_c_saves_when_the_loop_has_ended(tmp_path, heard):
    training = resumable(tmp_path, False)
    steps(training, 3)
    assert not training.stops(False)
    assert training.stops(True)
    signal.raise_signal(signal.SIGINT)
    assert training.stops(False)
    with pytest.raises(KeyboardInterrupt):
        training.close()
    assert resumable(tmp_path, True).step == 3


def test_a_second_ctrl_c_interrupts_at_once(tmp_path, heard):
    before = signal.getsignal(signal.SIGINT)
    training = resumable(tmp_path, False)
    training.close()
    assert signal.getsignal(signal.SIGINT) is before
    resumable(tmp_path, False)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# ---- where a training runs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "replicas", "batch", "shares"),
    [(1, 1, 5, [(0, 5)]), (2, 2, 6, [(0, 3), (3, 6)]), (2, 4, 8, [(0, 4), (4, 8)])],
)
def test_the_workers_shares_are_the_batch(workers, replicas, batch, shares):
    for worker, (begin, end) in enumerate(shares):
        place = object.__new__(Place)
        place.worker, place.workers, place.replicas = worker, workers, replicas
        assert place.share(batch) == slice(begin, end)


@pytest.mark.parametrize(("replicas", "batch", "instead"), [(3, 64, 63), (4, 6, 4), (4, 3, 4)])
def test_a_batch_that_replicas_can_not_share_is_a_sentence(monkeypatch, replicas, batch, instead):
    several = SimpleNamespace(num_replicas_in_sync=replicas)
    monkeypatch.setitem(STRATEGIES, "mirrored", lambda: several)
    with pytest.raises(ValueError, match=f"batch of {batch} equally: take {instead}$"):
        Place("mirrored").share(batch)


@pytest.mark.parametrize(
    ("kind", "index", "place"),
    [("chief", 0, (0, 3)), ("worker", 0, (1, 3)), ("worker", 1, (2, 3))],
)
def test_a_chief_comes_before_the_workers(monkeypatch, kind, index, place):
    cluster = {"chief": ["one:1"], "worker": ["two:1", "three:1"]}
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert place_in_cluster("multi-worker") == place
    assert place_in_cluster("mirrored") == (0, 1), "TF_CONFIG is for several workers alone"


def test_a_worker_that_goes_on_keeps_its_files_and_begins_anew_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    cluster = {"worker": ["one:1", "two:1"]}

    def run(worker: int, *flags: str) -> ResumableRun:
        config = {"cluster": cluster, "task": {"type": "worker", "index": worker}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        folder = ("--run-dir", str(tmp_path / "run"), "--strategy", "multi-worker")
        monkeypatch.setattr(sys, "argv", ["train.py", *folder, *flags])
        parser = make_parser("")
        parser.add_argument("--strategy")
        parser.add_argument("--resume", action="store_true")
        return ResumableRun(parser, tmp_path / "train.py")

    chief, worker = run(0), run(1)
    assert worker.folder == chief.folder / "worker_1"
    assert worker.backup == chief.backup == tmp_path / "run" / "backup"
    best = worker.path("model.keras")
    best.write_bytes(b"the best so far")
    chief.backup.mkdir()  # and now they are killed
    chief, worker = run(0), run(1)
    assert (chief.resuming, worker.resuming) == (True, False), "the chief tells the others"
    assert worker.path("model.keras") == best
    assert best.read_bytes() == b"the best so far"
    chief, worker = run(0, "--seed", "2"), run(1, "--seed", "2")
    assert not chief.resuming
    assert not best.exists()


def test_alone_a_batch_is_dealt_whole():
    place = Place("none")
    assert (place.worker, place.workers, place.replicas) == (0, 1, 1)
    batch = (tf.zeros([4, 2]), tf.zeros([4]))
    dealt = place.deal(*batch)
    assert all(mine is theirs for mine, theirs in zip(dealt, batch, strict=True))


TWO = {"worker": ["localhost:29871", "localhost:29872"]}


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[]",
        "3",
        json.dumps({"cluster": TWO}),
        json.dumps({"cluster": TWO, "task": {"type": "worker"}}),
        json.dumps({"cluster": TWO, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": TWO, "task": {"type": "worker", "index": "one"}}),
        json.dumps({"cluster": TWO, "task": {"type": "worker", "index": -1}}),
        json.dumps({"cluster": TWO, "task": {"type": "evaluator", "index": 0}}),
        json.dumps({"cluster": TWO, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": 5, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_workers_that_are_not_named_are_a_sentence(monkeypatch, config):
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match="TF_CONFIG"):
        Place("multi-worker")


def deal_to_two() -> None:
    """Print what two replicas on one machine are dealt; in a process of its own, since devices
    are made before anything else."""
    from utils import training

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    training.STRATEGIES["mirrored"] = lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    place = Place("mirrored")
    dealt = place.deal(tf.range(6), tf.reshape(tf.range(12), [6, 2]))
    local = place.strategy.experimental_local_results
    parts = [[part.numpy().tolist() for part in local(some)] for some in dealt]
    print(json.dumps([place.worker, place.workers, place.replicas, parts]))


def test_replicas_get_equal_parts_in_order():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", "import test_training; test_training.deal_to_two()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: list[Any] = json.loads(done.stdout.splitlines()[-1])
    worker, workers, replicas, parts = answer
    assert (worker, workers, replicas) == (0, 1, 2)
    assert parts[0] == [[0, 1, 2], [3, 4, 5]]
    assert parts[1] == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
