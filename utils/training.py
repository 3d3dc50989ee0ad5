"""What trainings share beside their lesson: the schedule of the learning rate, the devices they
run on, exact backups, and going on after a stop."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from utils.run import LIST, CourseParser, Run, checkpoints, quoted, readable


def warm_up_cosine(
    peak: float, steps: int, warm_up: float = 0.15, start: float = 0.1
) -> keras.optimizers.schedules.CosineDecay:
    """A learning rate that rises evenly from ``start`` times ``peak`` to ``peak`` over the part
    ``warm_up`` of all ``steps``, then falls to 0 along half a cosine (Loshchilov, Hutter, 2017)."""
    rising = max(1, int(steps * warm_up))
    return keras.optimizers.schedules.CosineDecay(
        start * peak, max(1, steps - rising), warmup_target=peak, warmup_steps=rising
    )


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


class ResumableRun(Run):
    """A run of a long training, with the flag ``--resume``. If it was stopped, the same command
    with the same ``--run-dir`` goes on (``resuming`` is True then), and so does ``--resume`` with
    the newest that was stopped. ``backup`` is the folder for checkpoints; they are gone when the
    run is finished."""

    def _begin(self, parser: CourseParser) -> None:
        names = self.arguments.keys() - {"run_dir", "show", "resume"}
        settings = {name: self.arguments[name] for name in sorted(names)}
        settings |= {"script": self.script, "COURSE_DATA": os.environ.get("COURSE_DATA")}
        self.unfinished, folders = settings, [self.folder]
        if self.args.resume and not self.args.run_dir:
            self.folder.rmdir()  # made for a new run
            folders = sorted(self.runs.glob("*/"), reverse=True)
        stopped = next(filter(self._is_stopped, folders), None)
        if self.args.resume and stopped is None:
            where = readable(self.args.run_dir or self.runs)
            parser.error(f"--resume: no run with these settings was stopped in {where}")
        self.resuming = stopped is not None
        self.folder = stopped or self.folder
        super()._begin(parser, keep=self.resuming)
        self.backup = self.path("backup")
        self.stopped = f"Stopped. To go on: the same command with --run-dir {quoted(self.folder)}"

    def _is_stopped(self, folder: Path) -> bool:
        with suppress(OSError, ValueError, LookupError, TypeError):
            left = json.loads((folder / LIST).read_text(encoding="utf-8"))
            return left["unfinished"] == self.unfinished and (folder / "backup").exists()
        return False

    def finish(self, *results: Any, **more: Any) -> None:
        """As a run's; the checkpoints are removed."""
        self.unfinished = None
        self._own.discard(self.backup)
        super().finish(*results, **more)
        self._remove({self.backup, *checkpoints(self.backup)})
