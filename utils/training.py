"""What training loops share beside their lesson: the devices they run on, and exact backups."""

import os
import signal
from pathlib import Path
from typing import Any

import tensorflow as tf

STRATEGIES = {  # --strategy
    "none": tf.distribute.get_strategy,  # one device
    "mirrored": tf.distribute.MirroredStrategy,  # all GPUs of this machine
    "multi-worker": tf.distribute.MultiWorkerMirroredStrategy,  # a process on each machine
}


class Place:
    """Where a training runs. Make it before anything else of TensorFlow; ValueError, with a
    sentence, if the environment variable TF_CONFIG does not say who the workers are.

    Attributes:
        strategy: to be used as ``with place.strategy.scope():`` when variables are made.
        worker, workers: this process's number, and how many there are; worker 0 is the chief.
        replicas: how many copies of the model are trained, in all workers together.
    """

    def __init__(self, name: str) -> None:
        if name == "multi-worker" and "TF_CONFIG" not in os.environ:
            raise ValueError(
                'multi-worker needs TF_CONFIG in each worker\'s environment, such as {"cluster": '
                '{"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
            )
        try:
            self.strategy = STRATEGIES[name]()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"TF_CONFIG can't be used: {error}") from error
        self.replicas = self.strategy.num_replicas_in_sync
        self.worker, self.workers = 0, 1
        if name == "multi-worker":
            resolver = self.strategy.cluster_resolver
            self.worker = resolver.task_id
            self.workers = resolver.cluster_spec().num_tasks("worker")

    def deal(self, batch: Any) -> Any:
        """This worker's batch, tensors [b, …], in equal parts to its replicas."""
        count = self.replicas // self.workers
        if count == 1:
            return batch
        parts = tf.nest.map_structure(lambda tensor: tf.split(tensor, count), batch)
        return tf.nest.map_structure_up_to(
            batch,
            lambda some: self.strategy.experimental_distribute_values_from_function(
                lambda context: some[context.replica_id_in_sync_group % count]
            ),
            parts,
        )


class Backup:
    """A checkpoint of all that changes while a Keras model is trained: its weights, the seeds of
    its dropout, the optimizer, and whatever is named: variables, a ``tf.data`` iterator."""

    def __init__(self, folder: Path, model: Any, optimizer: Any, **state: Any) -> None:
        optimizer.build(model.trainable_variables)
        seeds = [v.value for v in model.non_trainable_variables if "seed_generator" in v.path]
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, seeds=seeds, **state)
        self._manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1)

    def save(self) -> None:
        """Write it; the one before goes when this one is whole."""
        self._manager.save()

    def restore(self) -> bool:
        """Set everything to what was saved last; False if nothing was."""
        latest = self._manager.restore_or_initialize()
        return latest is not None


class Interruption:
    """While its block runs, the first Ctrl-C only sets ``wanted``, so that a step can be finished
    and saved; the second one interrupts at once."""

    def __enter__(self) -> "Interruption":
        self.wanted = False
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: Any) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._before)
