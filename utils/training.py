"""What training loops share beside their lesson: the devices they run on, and exact backups."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

STRATEGIES = {  # --strategy
    "none": tf.distribute.get_strategy,  # one device
    "mirrored": tf.distribute.MirroredStrategy,  # all GPUs of this machine
    "multi-worker": tf.distribute.MultiWorkerMirroredStrategy,  # a process on each machine
}


class Place:
    """Where a training runs: ``strategy``, in whose scope variables are made; ``worker``, this
    process's number of ``workers``, 0 the chief; ``replicas`` of the model in all of them together.
    Make it before anything else of TensorFlow. ValueError, with a sentence, if TF_CONFIG is bad."""

    def __init__(self, name: str) -> None:
        if name == "multi-worker" and "TF_CONFIG" not in os.environ:
            raise ValueError(
                'multi-worker needs TF_CONFIG in each worker\'s environment, such as {"cluster": '
                '{"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
            )
        self.worker, self.workers = 0, 1
        try:
            self.strategy = STRATEGIES[name]()
            if name == "multi-worker":
                cluster = self.strategy.cluster_resolver
                self.worker = cluster.task_id
                self.workers = cluster.cluster_spec().num_tasks("worker")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"TF_CONFIG can't be used: {error}") from error
        self.replicas = self.strategy.num_replicas_in_sync

    def deal(self, *batch: tf.Tensor) -> tuple[Any, ...]:
        """This worker's batch, tensors [b, …], each in equal parts for its replicas."""
        if (count := self.replicas // self.workers) == 1:
            return batch
        parts = [tf.split(tensor, count) for tensor in batch]
        deal = self.strategy.experimental_distribute_values_from_function
        return tuple(deal(lambda c, p=p: p[c.replica_id_in_sync_group % count]) for p in parts)


def exact_checkpoints(
    folder: Path, model: Any, optimizer: Any, **state: Any
) -> tf.train.CheckpointManager:
    """A manager, with ``save()`` and ``restore_or_initialize()``, of what a training changes:
    weights, dropout's seeds, the built optimizer, and what is named: variables, an iterator."""
    seeds = [v.value for v in model.non_trainable_variables if "seed_generator" in v.path]
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, seeds=seeds, **state)
    return tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1)


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed, so that the step at hand can be
    finished and saved first. A second Ctrl-C interrupts at once."""
    pressed = []

    def note(*_: Any) -> None:
        pressed.append(True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
