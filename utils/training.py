"""What trainings share beside their lesson: the schedule of the learning rate, the devices they
run on, and going on after a stop."""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
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
        self.worker, self.workers = place_in_cluster(name)
        try:
            self.strategy = STRATEGIES[name]()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"TF_CONFIG can't be used: {error}") from error
        self.replicas = self.strategy.num_replicas_in_sync

    def share(self, batch_size: int) -> slice:
        """This worker's part of a batch; ValueError if the replicas can't share it equally."""
        if batch_size % self.replicas:
            raise ValueError(
                f"{self.replicas} replicas can't share a batch of {batch_size} equally: take "
                f"{batch_size // self.replicas * self.replicas or self.replicas}"
            )
        size = batch_size // self.workers
        return slice(self.worker * size, (self.worker + 1) * size)

    def deal(self, *batch: tf.Tensor) -> tuple[Any, ...]:
        """This worker's batch, tensors [b, …], each in equal parts for its replicas."""
        if (count := self.replicas // self.workers) == 1:
            return batch
        parts = [tf.split(tensor, count) for tensor in batch]
        deal = self.strategy.experimental_distribute_values_from_function
        return tuple(deal(lambda c, p=p: p[c.replica_id_in_sync_group % count]) for p in parts)

    def total(self, number: int) -> int:
        """The sum of all workers' numbers, which each of them gets; all must ask for it."""
        if self.workers == 1:
            return number
        (mine,) = self.deal(tf.fill([self.replicas // self.workers], number))
        return int(_sum(self.strategy, mine)) // (self.replicas // self.workers)


@tf.function
def _sum(strategy: tf.distribute.Strategy, numbers: Any) -> tf.Tensor:
    parts = strategy.run(tf.reduce_sum, args=(numbers,))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)


def place_in_cluster(strategy: str) -> tuple[int, int]:
    """This process's number, 0 the chief, and how many there are, as TF_CONFIG says; 0 and 1 for
    a ``strategy`` of one process. Raises ValueError, with a sentence."""
    if strategy != "multi-worker":
        return 0, 1
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        chiefs, workers = (len(config["cluster"].get(kind, ())) for kind in ("chief", "worker"))
        kind, number = config["task"]["type"], int(config["task"]["index"])
        if not 0 <= number < {"chief": chiefs, "worker": workers}[kind]:
            raise ValueError(f"there is no task {kind} {number}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG can't be used ({error!r}): each worker needs TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from error
    return number + chiefs * (kind == "worker"), chiefs + workers


class ResumableRun(Run):
    """A run of a long training, with the flag ``--resume``. If it was stopped, the same command
    with the same ``--run-dir`` goes on (``resuming`` is True then), and so does ``--resume`` with
    the newest that was stopped. ``backup`` is the folder for checkpoints; they are gone when the
    run is finished.

    Of several workers, all name the same ``--run-dir``, on a disk that they share. The chief's run
    is there and decides; another's is in ``worker_1`` and so on, and ``backup`` is the chief's.
    """

    def _begin(self, parser: CourseParser) -> None:
        try:
            worker, workers = place_in_cluster(getattr(self.args, "strategy", "none"))
        except ValueError as error:
            parser.error(str(error))
        if workers > 1 and not self.args.run_dir:
            parser.error("several workers need one --run-dir, a folder that all of them see")
        settings = {"script": self.script, "COURSE_DATA": os.environ.get("COURSE_DATA")}
        self.unfinished, folders = self.arguments | settings, [self.folder]
        for name in ("run_dir", "show", "resume"):
            del self.unfinished[name]
        if worker:
            self.backup, keep = self.folder / "backup", self._is_stopped(self.folder)
            self.folder, self.resuming = self.folder / f"worker_{worker}", False
            self.folder.mkdir(exist_ok=True)
            return super()._begin(parser, keep)  # its best model so far, for one
        if self.args.resume and not self.args.run_dir:
            self.folder.rmdir()  # made for a new run
            folders = sorted(self.runs.glob("*/"), reverse=True)
        self.folder = next(filter(self._is_stopped, folders), self.folder)
        self.resuming = self._is_stopped(self.folder)
        if self.args.resume and not self.resuming:
            where = readable(self.args.run_dir or self.runs)
            parser.error(f"--resume: no run with these settings was stopped in {where}")
        super()._begin(parser, keep=self.resuming)
        self.backup = self.path("backup")
        self.stopped = f"Stopped. To go on: the same command with --run-dir {quoted(self.folder)}"

    def _is_stopped(self, folder: Path) -> bool:
        with suppress(OSError, ValueError, LookupError, TypeError):
            left = json.loads((folder / LIST).read_text(encoding="utf-8"))
            return left["unfinished"] == self.unfinished and (folder / "backup").exists()
        return False

    def _say_stopped(self, kind: type, error: BaseException, trace: Any) -> None:
        if issubclass(kind, OSError):  # such as a full disk
            sys.exit(f"{error}. What was saved before is whole. {self.stopped}")
        super()._say_stopped(kind, error, trace)

    def finish(self, *results: Any, **more: Any) -> None:
        """As a run's; the checkpoints are removed."""
        self.unfinished = None
        ours = {self.backup} & self._own  # a worker's are the chief's
        self._own -= ours
        super().finish(*results, **more)
        self._remove(ours.union(*map(checkpoints, ours)))


class Resumable:
    """A training that can be killed at any moment and goes on from its last checkpoint, which holds
    the weights (dropout's counters too), the optimizer, the step, the history and what is named as
    ``more``. All else must follow from the seed and the step. The chief writes, all workers read.
    Ctrl-C is noted for ``stops``; a second one interrupts at once.

    Attributes:
        step: optimizer steps so far.
        history: a row for each validation, ``{"step": …, "seconds": …, "loss": …}``.
    """

    def __init__(
        self, run: ResumableRun, place: Place, model: Any, optimizer: Any, **more: Any
    ) -> None:
        self.place, self.history, self._pressed = place, [], False
        self._backup, self._rows = run.backup, tf.Variable("")  # the history as JSON
        seeds = [v.value for v in model.non_trainable_variables if "seed_generator" in v.path]
        more |= {"model": model, "optimizer": optimizer, "seeds": seeds, "history": self._rows}
        self._manager = tf.train.CheckpointManager(tf.train.Checkpoint(**more), run.backup, 1)
        path = self._manager.latest_checkpoint if run.resuming else None
        self.step = place.total(int(path.rpartition("-")[2]) if path else 0)  # the chief's
        if self.step:
            path = run.backup / f"ckpt-{self.step}"
            try:
                self._manager.checkpoint.read(str(path)).assert_existing_objects_matched()
            except (OSError, ValueError, LookupError, AssertionError, tf.errors.OpError) as error:
                raise OSError(f"can't read the checkpoint {path}: {error}") from error
            self.history = json.loads(self._rows.numpy())
            print(f"Going on after step {self.step:,}")
        self._before = signal.signal(signal.SIGINT, self._press)
        self._started = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0)

    def _press(self, *_: Any) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, self._before)

    @property
    def seconds(self) -> float:
        """Spent in the training, validation included; what a kill lost is not counted."""
        return time.perf_counter() - self._started

    @property
    def best(self) -> dict[str, float]:
        """The row of the history with the smallest loss."""
        return min(self.history, key=lambda row: row["loss"])

    @property
    def waited(self) -> int:
        """Validations since the best one."""
        return len(self.history) - 1 - self.history.index(self.best) if self.history else 0

    def note(self, scores: Mapping[str, float]) -> bool:
        """Add the ``scores`` of a validation to the history; whether their loss is the smallest."""
        row = {"step": self.step, "seconds": round(self.seconds, 3), **scores}
        self.history.append(row)
        return self.best is row

    def save(self) -> None:
        """Write a checkpoint; OSError if that fails, with the one before still whole."""
        if self.place.worker == 0:
            self._rows.assign(json.dumps(self.history))
            try:
                self._manager.save(checkpoint_number=self.step)
            except tf.errors.OpError as error:  # what a full disk raises is no OSError
                raise OSError(f"can't write {self._backup}: {error.message}") from error

    def stops(self, wish: bool) -> bool:
        """Whether any worker wishes to stop or was interrupted by Ctrl-C."""
        return self.place.total(int(wish or self._pressed)) > 0

    def close(self) -> None:
        """After the loop: Ctrl-C interrupts at once again. If it was pressed, in any worker, save a
        checkpoint and raise KeyboardInterrupt."""
        signal.signal(signal.SIGINT, self._before)
        if self.stops(False):
            self.save()
            raise KeyboardInterrupt
