"""utils/training.py: the learning rate, trainings that go on after a stop, and who trains where."""

import json
import os
import shlex
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

from utils import run as run_module
from utils.run import CourseParser, positive_int
from utils.training import CHECKPOINT, STRATEGIES, TrainingRun, warm_up_cosine

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
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a training as ``chapter/02_train.py`` of a project in ``tmp_path`` would."""
    monkeypatch.setattr(run_module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def begin(*flags: str) -> TrainingRun:
        monkeypatch.setattr(sys, "argv", ["02_train.py", *flags])
        parser = CourseParser("A training.")
        parser.add_argument("--epochs", type=positive_int, default=12, quick=2)
        parser.add_argument("--strategy", choices=STRATEGIES, default="none")
        return TrainingRun(parser, tmp_path / "chapter" / "02_train.py")

    yield begin
    signal.signal(signal.SIGINT, before)


def started(run: TrainingRun) -> tuple[keras.Model, Any]:
    """The run's network, with dropout, and its optimizer, as its script would make them."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    model, optimizer = keras.Sequential(layers), keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    run.start([*model.variables, *optimizer.variables])
    return model, optimizer


def steps(run: TrainingRun, model: keras.Model, optimizer: Any, count: int) -> None:
    for _ in range(count):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones([4, 3]), training=True)) * (run.step + 1)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        run.step += 1


def everything(model: keras.Model, optimizer: Any) -> list[np.ndarray]:
    return [v.value.numpy() for v in (*model.variables, *optimizer.variables)]


def test_a_training_goes_on_from_its_last_save(begin, capsys):
    first = begin("--run-dir", "run")
    parts = started(first)
    assert (first.step, first.history) == (0, [])
    losses = [3.0, 1.0, 2.0, 1.0]
    assert [(steps(first, *parts, 2), first.note({"loss": loss}))[1] for loss in losses] == [
        *(True, True, False, False)  # an equal loss is no smaller one
    ]
    assert first.best["step"] == 4
    first.path("model.keras").write_text("the best so far", encoding="utf-8")
    first.save()
    wanted = everything(*parts)
    steps(first, *parts, 2)
    first.note({"loss": 0.5})
    rows = first.history[:4]

    second = begin("--run-dir", "run", "--show")
    assert second.path("model.keras") == first.path("model.keras")
    assert second.path("model.keras").read_text("utf-8") == "the best so far"
    again = started(second)
    assert "Going on after step 8" in capsys.readouterr().out
    assert (second.step, second.history) == (8, rows)
    assert second.train_seconds >= rows[-1]["seconds"]
    for mine, theirs in zip(everything(*again), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    steps(second, *again, 2)
    for mine, theirs in zip(everything(*again), everything(*parts), strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg="dropout's dice are kept too")
    second.finish({"loss": 1})
    assert not [*second.folder.glob("*.npz")]
    third = begin("--run-dir", "run")
    started(third)
    assert third.step == 0
    assert not third.path("model.keras").exists(), "a run that is finished is removed as any other"


@pytest.mark.parametrize("change", [["--epochs", "4"], ["--quick"], ["--seed", "2"]])
def test_a_run_with_other_settings_does_not_go_on(begin, change):
    run = begin("--run-dir", "run")
    started(run)
    run.save()
    notes = run.folder / "notes.txt"
    notes.write_text("foreign", encoding="utf-8")
    other = begin("--run-dir", "run", *change)
    assert not [*other.folder.glob("*.npz")]
    assert notes.read_text("utf-8") == "foreign"
    started(other)
    assert other.step == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40], lambda b: b"a picture"])
def test_what_is_no_checkpoint_is_named_and_kept(begin, damage):
    run = begin("--run-dir", "run")
    started(run)
    run.save()
    path = run.folder / CHECKPOINT
    path.write_bytes(content := damage(path.read_bytes()))
    with pytest.raises(SystemExit, match=f"Can't read .*{CHECKPOINT}.* another --run-dir"):
        begin("--run-dir", "run")
    assert path.read_bytes() == content


def test_ctrl_c_saves_when_the_loop_has_ended(begin, capsys):
    run = begin("--run-dir", "my run")
    parts = started(run)
    steps(run, *parts, 3)
    assert not run.stopped
    signal.raise_signal(signal.SIGINT)
    assert run.stopped
    with pytest.raises(KeyboardInterrupt):
        run.end()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (words[0], *words[-2:]) == ("Stopped.", "--run-dir", "my run")
    again = begin("--run-dir", "my run")
    started(again)
    assert again.step == 3


# ---- where a training runs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "replicas", "batch", "shares"),
    [(1, 1, 5, [(0, 5)]), (2, 2, 6, [(0, 3), (3, 6)]), (2, 4, 8, [(0, 4), (4, 8)])],
)
def test_the_workers_shares_are_the_batch(workers, replicas, batch, shares):
    for worker, (first, end) in enumerate(shares):
        run = object.__new__(TrainingRun)
        run.worker, run.workers, run.replicas = worker, workers, replicas
        assert run.share(batch) == slice(first, end)


@pytest.fixture
def one_of(begin: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start the run of one of several workers, which connects to none."""
    several = SimpleNamespace(num_replicas_in_sync=3)
    monkeypatch.setitem(STRATEGIES, "multi-worker", lambda: several)

    def one_of(kind: str, index: int, *flags: str) -> TrainingRun:
        cluster = {"chief": ["one:1"], "worker": ["two:1", "three:1"]}
        config = {"cluster": cluster, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        return begin("--strategy", "multi-worker", *flags)

    return one_of


def test_a_chief_comes_before_the_workers_and_all_have_their_folders(one_of, tmp_path):
    runs = [
        one_of(*task, "--run-dir", "run") for task in (("chief", 0), ("worker", 0), ("worker", 1))
    ]
    assert [(run.worker, run.workers) for run in runs] == [(0, 3), (1, 3), (2, 3)]
    folders = [tmp_path / "run", tmp_path / "run" / "worker_1", tmp_path / "run" / "worker_2"]
    assert [run.folder for run in runs] == folders
    assert {run.to_go_on for run in runs} == {"To go on after a stop, add --run-dir run"}


def test_all_workers_go_on_with_the_chiefs_checkpoint(one_of):
    chief, worker = (one_of(kind, 0, "--run-dir", "run") for kind in ("chief", "worker"))
    started(worker)
    worker.step = 5
    worker.save()
    assert not [*chief.folder.rglob("*.npz")], "the chief alone writes"
    worker.path("model.keras").write_bytes(b"the best so far")
    started(chief)
    chief.step = 4
    chief.save()  # and now they are killed
    chief, worker = (one_of(kind, 0, "--run-dir", "run") for kind in ("chief", "worker"))
    for run in (chief, worker):
        started(run)
        assert run.step == 4
    assert worker.path("model.keras").read_bytes() == b"the best so far"
    chief, worker = (
        one_of(kind, 0, "--run-dir", "run", "--seed", "2") for kind in ("chief", "worker")
    )
    for run in (chief, worker):
        started(run)
        assert run.step == 0
    assert not worker.path("model.keras").exists()


def test_workers_need_a_folder_that_all_see(one_of):
    with pytest.raises(SystemExit, match="one --run-dir"):
        one_of("worker", 1)


def test_alone_a_batch_is_dealt_whole(begin):
    run = begin()
    assert (run.worker, run.workers, run.replicas) == (0, 1, 1)
    batch = (tf.zeros([4, 2]), tf.zeros([4]))
    dealt = run.deal(*batch)
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
def test_workers_that_are_not_named_are_a_sentence(begin, monkeypatch, config):
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(SystemExit, match="TF_CONFIG"):
        begin("--strategy", "multi-worker", "--run-dir", "run")


def deal_to_two() -> None:
    """Print what two replicas on one machine are dealt; in a process of its own, since devices
    are made before anything else."""
    from utils import training

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    training.STRATEGIES["mirrored"] = lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    run = object.__new__(training.TrainingRun)
    run.strategy, run.workers = training.STRATEGIES["mirrored"](), 1
    run.replicas = run.strategy.num_replicas_in_sync
    dealt = run.deal(tf.range(6), tf.reshape(tf.range(12), [6, 2]))
    local = run.strategy.experimental_local_results
    parts = [[part.numpy().tolist() for part in local(some)] for some in dealt]
    print(json.dumps([run.replicas, parts]))


def test_replicas_get_equal_parts_in_order():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", "import test_training; test_training.deal_to_two()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: list[Any] = json.loads(done.stdout.splitlines()[-1])
    replicas, parts = answer
    assert replicas == 2
    assert parts[0] == [[0, 1, 2], [3, 4, 5]]
    assert parts[1] == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
