"""What every script of the course shares: its flags, its run folder, its result."""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IN_NOTEBOOK = "ipykernel" in sys.modules  # Jupyter, or an editor that runs the cells
SKIPPED = 77  # the exit status of a script that can show nothing true on this machine
LIST = "course_run.json"  # in a run folder: the files that the run left there


def _argument(kind: type, good: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with suppress(ValueError):
            if good(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


positive_int = _argument(int, lambda n: n >= 1, "a whole number from 1")
seed_int = _argument(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 4294967295")
share = _argument(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
positive_float = _argument(float, lambda x: 0 < x < float("inf"), "a number above 0")


class CourseParser(argparse.ArgumentParser):
    """A parser with the flags that all scripts have; ``doc`` is the script's docstring. A flag may
    have a second default, ``quick``, which it takes with ``--quick``. The help shows both."""

    def __init__(self, doc: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=form, allow_abbrev=False)
        add = self.add_argument
        add("--quick", action="store_true", help="a first look in seconds: less data, fewer steps")
        add("--seed", type=seed_int, default=1, help="same seed, same result on the same machine")
        add("--run-dir", type=Path, metavar="DIR", help="the run's folder (default: a new one)")
        add("--show", action="store_true", help="open figure windows as well as saving the figures")

    def add_argument(self, *names: str, quick: Any = None, **kwargs: Any) -> argparse.Action:
        if "help" in kwargs and kwargs.get("default") not in (None, argparse.SUPPRESS):
            also = "" if quick is None else f"; with --quick {quick}"
            kwargs["help"] += f" (default: %(default)s{also})"
        action = super().add_argument(*names, **kwargs)
        action.quick = action.default if quick is None else quick
        return action

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        args = [] if IN_NOTEBOOK and args is None else args  # its command line is not ours
        if super().parse_args(args, namespace).quick:
            self.set_defaults(**{a.dest: a.quick for a in self._actions if a.dest != "help"})
        return super().parse_args(args, namespace)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name, of the same suffix, that is renamed to ``path`` if the block
    succeeds: a half-written file never has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content``, NumPy numbers too, as indented UTF-8 JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=lambda x: x.item()) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable(path: Path) -> str:
    """The path as a person would type it: relative to the working directory if below it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def quoted(*words: str | Path) -> str:
    """The words as a command line from which the system's shell reads the same words."""
    words = [readable(word) if isinstance(word, Path) else word for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def format_metric(name: str, value: float) -> str:
    """A metric as a person reads it: accuracies in percent, others with four digits, or all."""
    digits = ".2%" if name.endswith("accuracy") else ",.0f" if abs(value) >= 1000 else ".4g"
    return f"{name.replace('_', ' ')} {value:{digits}}"


class Run:
    """One run of a script: its flags (``args``), its ``folder``, its figures, its result.

    A folder named by ``--run-dir`` may hold other things. What an earlier run of the course left
    there and listed in ``course_run.json`` is removed at the start. Nothing else is touched: a
    file whose name is taken gets another name.
    """

    def __init__(self, parser: CourseParser, script: str | Path) -> None:
        with suppress(AttributeError):  # a console that can't show a sign prints "?"
            sys.stdout.reconfigure(errors="replace")
        self.args = parser.parse_args()
        self.started = time.perf_counter()
        self.verbose = 1 if sys.stdout.isatty() else 2  # Keras's: a live bar, or a line an epoch
        path = Path(script).resolve()
        self.script = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        self.runs = ROOT / "runs" / Path(self.script).with_suffix("")
        self.figures, self.to_go_on = [], ""  # what is said after Ctrl-C, or when the disk is full
        if "matplotlib" in sys.modules and not self.args.show and not IN_NOTEBOOK:
            sys.modules["matplotlib"].use("Agg")  # draws into files, needs no screen
        label = f"{datetime.now():%Y%m%d-%H%M%S-%f}{'-quick' if self.args.quick else ''}"
        self.folder = (self.args.run_dir or self.runs / label).expanduser().resolve()
        sys.excepthook = self._stopped
        self._begin()

    def _stopped(self, kind: type, error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt | OSError):  # Ctrl-C, or such as a full disk
            print("Stopped.", *[f"{error}."] * issubclass(kind, OSError), self.to_go_on)
        else:
            sys.__excepthook__(kind, error, trace)

    def _begin(self, keep: bool = False) -> None:
        """Remove what an earlier run listed as its own, or ``keep`` it; begin this run's list."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own = set()
        with suppress(OSError, ValueError, AttributeError, TypeError):  # no list, or none of ours
            _script, files = json.loads((self.folder / LIST).read_text(encoding="utf-8")).values()
            self._own = {self.folder / name for name in [*files, LIST]}
        if not keep:
            for path in sorted(self._own - {self.folder / LIST}, reverse=True):
                with suppress(OSError):  # such as a folder that holds other things
                    if path.parent.resolve().is_relative_to(self.folder):  # no link, no ".."
                        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
                        for folder in path.parents:  # up to the run's, which holds the list
                            folder.rmdir()
            self._own &= {self.folder / LIST}
        self._others = {*self.folder.rglob("events.out.tfevents.*")} - self._own
        self._list()

    def path(self, name: str) -> Path:
        """Where to write the file or folder ``name`` in the run's folder; it is listed as this
        run's own. If something else has that name, ``<name>-1`` and so on takes its place."""
        wanted = path = self.folder / name
        number = 0
        while path not in self._own and os.path.lexists(path):
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        if path not in self._own:
            self._own.add(path)
            self._list()
        return path

    def _list(self) -> None:
        """List what the run made: its paths, what is in them by now, and its event files."""
        path = self.path(LIST)
        events = {*self.folder.rglob("events.out.tfevents.*")} - self._others
        own = events.union(self._own, *(own.rglob("*") for own in self._own)) - {path}
        files = sorted(file.relative_to(self.folder).as_posix() for file in own)
        write_json(path, {"script": self.script, "files": files})

    def save_figure(self, figure: Any, name: str) -> Path:
        """Save a figure as ``<name>.png`` and for TensorBoard's Images tab; print its path."""
        import tensorflow as tf

        path = self.path(f"{name}.png")
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=120)
        with tf.summary.create_file_writer(str(self.folder / "figures")).as_default():
            tf.summary.image(name, tf.io.decode_png(path.read_bytes())[tf.newaxis], step=0)
        self.figures.append(path)
        print(f"Figure: {readable(path)}")
        return path

    def write_graph(self, name: str, function: Any) -> None:
        """Write the graph of ``f.get_concrete_function(...)`` for TensorBoard's Graphs tab."""
        import tensorflow as tf

        with tf.summary.create_file_writer(str(self.folder / name)).as_default():
            tf.summary.graph(function.graph)

    def finish(
        self, metrics: Mapping[str, float], data: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """Write ``result.json``, print four metrics and the TensorBoard command. Accuracies
        are fractions; ``data`` is ``{"source": str, "stand_in": bool}``, None for a script that
        makes its own. A training adds ``train_seconds`` and ``parameters``."""
        args = vars(self.args).items()
        versions = {p: importlib.metadata.version(p) for p in ("tensorflow", "keras", "numpy")}
        result = {
            "script": self.script,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in args},
            "seed": self.args.seed,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "seconds": round(time.perf_counter() - self.started, 3),
            "data": dict(data or {"source": "made by the script", "stand_in": False}),
            "figures": [path.name for path in self.figures],
            "versions": {"python": platform.python_version(), **versions},
            **more,
        }
        write_json(self.path("result.json"), result)
        self._list()
        shown = [format_metric(name, value) for name, value in result["metrics"].items()]
        warning = " [STAND-IN DATA, not the real data set]" if result["data"]["stand_in"] else ""
        print(f"\nResult: {', '.join(shown[:4])}{warning}")
        program = Path(sys.executable).with_name("tensorboard")  # also with no venv activated
        print("TensorBoard:", quoted(program, "--logdir", self.folder))
        if self.args.show and self.figures:
            sys.modules["matplotlib.pyplot"].show()
