"""utils/training.py: exact backups, Ctrl-C between two steps, and who trains where."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils.tfrecord import load_split, write_dataset
from utils.training import Place, exact_checkpoints, interruption, warm_up_cosine

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


# ---- backups -------------------------------------------------------------------------------


class Training:
    """A network with all that a backup has to hold: weights, moving averages, dropout's seed,
    Adam's averages, an iterator with a shuffle buffer, a count."""

    def __init__(self, folder: Path) -> None:
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        x = keras.layers.BatchNormalization()(keras.layers.Dense(5, activation="relu")(inputs))
        inner = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(5)])
        x = keras.layers.Dropout(0.5)(inner(x))
        self.model = keras.Model(inputs, keras.layers.Dense(1)(x))
        self.optimizer = keras.optimizers.Adam(0.1)
        numbers = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
        batches = tf.data.Dataset.from_tensor_slices(numbers).shuffle(20, seed=1).repeat().batch(3)
        self.stored, self.done = iter(batches), tf.Variable(0)
        self.optimizer.build(self.model.trainable_variables)
        state = {"stored": self.stored, "done": self.done}
        self.backup = exact_checkpoints(folder, self.model, self.optimizer, **state)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.model(next(self.stored), training=True) - 1) ** 2)
            variables = self.model.trainable_variables
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, variables), variables, strict=True)
            )
            self.done.assign_add(1)
            losses.append(float(loss))
        return losses


def test_a_restored_training_goes_on_exactly(tmp_path):
    first = Training(tmp_path / "backup")
    assert not first.backup.restore_or_initialize(), "nothing was saved yet"
    first.steps(3)
    first.backup.save()
    first.steps(2)
    first.backup.save()
    losses = first.steps(9)  # more than an epoch: the shuffle buffer is filled anew
    assert len(list((tmp_path / "backup").glob("*.index"))) == 1, "the last one only"

    second = Training(tmp_path / "backup")
    second.steps(1)  # so that nothing is right by itself
    assert second.backup.restore_or_initialize()
    assert int(second.done) == 5
    assert second.steps(9) == losses
    for mine, theirs in zip(
        [*first.model.variables, *first.optimizer.variables],
        [*second.model.variables, *second.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


@pytest.mark.parametrize("done", [0, 3, 5, 6, 8])
def test_restored_records_come_in_the_same_order_in_all_epochs_to_come(tmp_path, done):
    write_dataset(tmp_path, {"train": range(20)}, lambda i: {"number": i}, shards=3)

    def begin() -> tuple[Any, tf.train.Checkpoint]:
        keras.utils.set_random_seed(1)
        batches = load_split(tmp_path, "train", 3, seed=1, endless=True)
        stored = iter(batches.shard(1, 0))
        return stored, tf.train.Checkpoint(stored=stored)

    def take(stored: Any, count: int) -> list[list[int]]:
        return [next(stored)["number"].numpy().tolist() for _ in range(count)]

    stored, checkpoint = begin()
    take(stored, done)
    path = checkpoint.save(tmp_path / "state")
    wanted = take(stored, 20)  # more than three epochs of six batches
    stored, checkpoint = begin()
    checkpoint.restore(path)
    assert take(stored, 20) == wanted


def test_a_backup_that_can_not_be_written_leaves_the_one_before(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    first = Training(tmp_path / "backup")
    first.steps(2)
    first.backup.save()
    losses = first.steps(2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # as on a full disk
    try:
        with pytest.raises((OSError, tf.errors.OpError)):
            first.backup.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    second = Training(tmp_path / "backup")
    second.steps(1)  # so that nothing is right by itself
    assert second.backup.restore_or_initialize()
    assert int(second.done) == 2
    assert second.steps(2) == losses


# ---- Ctrl-C --------------------------------------------------------------------------------


def test_the_first_ctrl_c_is_noted_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruption() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was not heard")
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_as_before_after_the_block():
    before = signal.getsignal(signal.SIGINT)
    with interruption() as pressed:
        pass
    assert not pressed()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), interruption():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is before


# ---- where a training runs -----------------------------------------------------------------


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
        json.dumps({"cluster": TWO, "task": {"type": "evaluator", "index": 0}}),
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
