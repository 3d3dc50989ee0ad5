"""What trainings share beside their lesson: the schedule of the learning rate, the devices they
run on, and going on after a stop."""

import json
import signal
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from utils.run import Run, quoted

CHECKPOINT = "training_checkpoint.npz"  # in the chief's run folder
STRATEGIES = {  # --strategy
    "none": tf.distribute.get_strategy,  # one device
    "mirrored": tf.distribute.MirroredStrategy,  # all GPUs of this machine
    "multi-worker": tf.distribute.MultiWorkerMirroredStrategy,  # a process on each machine
}


def warm_up_cosine(
    peak: float, steps: int, warm_up: float = 0.15, start: float = 0.1
) -> keras.optimizers.schedules.CosineDecay:
    """A learning rate that rises evenly from ``start`` times ``peak`` to ``peak`` over the part
    ``warm_up`` of all ``steps``, then falls to 0 along half a cosine (Loshchilov, Hutter, 2017)."""
    rising = max(1, int(steps * warm_up))
    return keras.optimizers.schedules.CosineDecay(
        start * peak, max(1, steps - rising), warmup_target=peak, warmup_steps=rising
    )


class TrainingRun(Run):
    """A run that trains for long and can be killed: the same command with its folder as
    ``--run-dir`` goes on. Its checkpoint holds the variables, the ``step`` and the ``history``, a
    row of scores for each validation; all else must follow from the seed and the step. Ctrl-C sets
    ``stopped``. Variables are made in the scope of ``strategy``.

    Several workers name the same ``--run-dir``, on a disk that they share. The ``worker`` 0 is the
    chief. Its run is there, with the checkpoint for all; another's is in ``worker_1`` and so on.
    """

    def _begin(self, keep: bool = False) -> None:
        self.step, self.history, self.stopped, self.worker, self.workers = 0, [], False, 0, 1
        try:
            if self.args.strategy == "multi-worker":
                here = tf.distribute.cluster_resolver.TFConfigClusterResolver()
                jobs = here.cluster_spec().as_dict()
                tasks = [(j, i) for j in ("chief", "worker") for i in range(len(jobs.get(j, ())))]
                self.worker, self.workers = tasks.index((here.task_type, here.task_id)), len(tasks)
                if not self.args.run_dir:
                    sys.exit("Workers need one --run-dir, a folder that all of them see.")
            self.strategy = STRATEGIES[self.args.strategy]()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            sys.exit(f"Each worker needs a TF_CONFIG of its own: {error!r}")
        self.replicas = self.strategy.num_replicas_in_sync
        ours = {**vars(self.args), "script": self.script, "run_dir": None, "show": None}
        self._settings = json.loads(json.dumps(ours, default=str))
        self._checkpoint, self._saved = self.folder / CHECKPOINT, {}
        if self._checkpoint.exists():
            try:
                with np.load(self._checkpoint) as saved:
                    left = dict(saved) | json.loads(str(saved["about"]))
                self._saved = left if left["settings"] == self._settings else {}
            except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
                sys.exit(f"Can't read {self._checkpoint}: {error}. Take another --run-dir.")
        if self.worker:
            self.folder /= f"worker_{self.worker}"
        super()._begin(keep=bool(self._saved))
        if not self.worker:
            self._checkpoint = self.path(CHECKPOINT)
        self.to_go_on = f"To go on after a stop, add --run-dir {quoted(self._checkpoint.parent)}"
        print(self.to_go_on)

    def share(self, batch_size: int) -> slice:
        """This worker's part of a batch; ValueError if the replicas can't share it equally."""
        if batch_size % self.replicas:
            raise ValueError(
                f"{self.replicas} replicas can't share a batch of {batch_size} equally"
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

    def start(self, variables: Sequence[Any]) -> None:
        """Begin with these ``variables``, or go on with what the checkpoint holds of them."""
        self._variables, saved, self._saved = variables, self._saved, {}
        if saved:
            for number, variable in enumerate(variables):
                variable.assign(saved[str(number)])
            self.step, self.history = saved["step"], saved["history"]
            print(f"Going on after step {self.step:,}")
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "stopped", True))
        self._zero = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0)

    @property
    def train_seconds(self) -> float:
        """Spent in the training, validation included; what a kill lost is not counted."""
        return round(time.perf_counter() - self._zero, 3)

    @property
    def best(self) -> dict[str, float]:
        """The row of the history with the smallest loss."""
        return min(self.history, key=lambda row: row["loss"])

    def note(self, scores: Mapping[str, float]) -> bool:
        """Add the ``scores`` of a validation to the history; whether their loss is the smallest."""
        self.history.append({"step": self.step, "seconds": self.train_seconds, **scores})
        return self.best is self.history[-1]

    def save(self) -> None:
        """Write the checkpoint, as the chief; OSError if that fails, with the last one whole."""
        if not self.worker:
            about = {"settings": self._settings, "step": self.step, "history": self.history}
            arrays = {str(number): v.numpy() for number, v in enumerate(self._variables)}
            np.savez(new := self.path(f"new_{CHECKPOINT}"), about=json.dumps(about), **arrays)
            new.replace(self._checkpoint)

    def end(self) -> None:
        """After the loop: Ctrl-C interrupts again. If it was pressed, save and stop."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.stopped:
            self.save()
            raise KeyboardInterrupt

    def finish(self, *results: Any, **more: Any) -> None:
        """As any run's; the checkpoint is removed."""
        super().finish(*results, **more)
        if not self.worker:
            self._checkpoint.unlink(missing_ok=True)
