"""utils/training.py: the learning rate, and who trains where."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from utils.training import Place, warm_up_cosine

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
