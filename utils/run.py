"""What every script of the course shares: its flags, its run folder, its result."""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
IN_NOTEBOOK = "ipykernel" in sys.modules  # Jupyter, or an editor that runs the cells
SKIPPED = 77  # the exit status of a script that can show nothing true on this machine
LIST = "course_run.json"  # in a run folder: the files that the run left there


def _argument(kind: type, good: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """An argparse type that says in words what it wants."""

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
    """An argument parser whose flags may have a second default, used with ``--quick``."""

    def add_argument(self, *names: str, quick: Any = None, **kwargs: Any) -> argparse.Action:
        """Like argparse's; ``quick`` is the default with ``--quick``. The help shows both."""
        if "help" in kwargs and kwargs.get("default") not in (None, argparse.SUPPRESS):
            also = "" if quick is None else f"; with --quick {quick}"
            kwargs["help"] += f" (default: %(default)s{also})"
        action = super().add_argument(*names, **kwargs)
        action.quick_default = action.default if quick is None else quick
        return action

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """Parse; with ``--quick``, flags that were not given take their quick defaults."""
        args = [] if IN_NOTEBOOK and args is None else args  # its command line is not ours
        if super().parse_args(args, namespace).quick:
            for action in self._actions:
                action.default = action.quick_default
        return super().parse_args(args, namespace)


def make_parser(doc: str) -> CourseParser:
    """The parser with the flags that all scripts have; ``doc`` is the script's docstring."""
    parser = CourseParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a first look in seconds: less data, fewer steps")
    add("--seed", type=seed_int, default=1, help="same seed, same result on the same machine")
    add("--run-dir", type=Path, metavar="DIR", help="the run's folder itself (default: a new one)")
    add("--show", action="store_true", help="open figure windows as well as saving the figures")
    return parser


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


def tensorboard_command(log_dir: Path) -> str:
    """The exact command that shows ``log_dir`` in TensorBoard, also with no venv activated."""
    program = shutil.which("tensorboard") and "tensorboard"
    return quoted(program or Path(sys.executable).with_name("tensorboard"), "--logdir", log_dir)


def checkpoints(folder: Path) -> set[Path]:
    """The files of TensorFlow's checkpoints in a folder and those below it."""
    return {*folder.rglob("checkpoint"), *folder.rglob("ckpt-*")}


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

    stopped = "Stopped."  # what is printed after Ctrl-C
    unfinished: Any = None  # in the list: the settings of a run that can go on

    def __init__(self, parser: CourseParser, script: str | Path) -> None:
        with suppress(AttributeError):  # a console that can't show a sign prints "?"
            sys.stdout.reconfigure(errors="replace")
        self.args = parser.parse_args()
        self.started = time.perf_counter()
        self.verbose = 1 if sys.stdout.isatty() else 2  # Keras's: a live bar, or a line an epoch
        args = vars(self.args).items()
        self.arguments = {k: str(v) if isinstance(v, Path) else v for k, v in args}
        path = Path(script).resolve()
        self.script = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        self.runs = ROOT / "runs" / Path(self.script).with_suffix("")
        self.figures: list[Path] = []
        self._figure_writer: Any = None
        if "matplotlib" in sys.modules and not self.args.show and not IN_NOTEBOOK:
            sys.modules["matplotlib"].use("Agg")  # draws into files, needs no screen
        label = f"{datetime.now():%Y%m%d-%H%M%S-%f}{'-quick' if self.args.quick else ''}"
        self.folder = (self.args.run_dir or self.runs / label).expanduser().resolve()
        self._own: set[Path] = set()
        # An event file's name has in it when, where and by which process it was made.
        self._events = [[f"{socket.gethostname()}.{os.getpid()}", int(time.time())]]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._begin(parser)
        except OSError as error:
            parser.error(f"can't use the run folder {error.filename}: {error.strerror}")
        sys.excepthook = self._say_stopped

    def _say_stopped(self, kind: type, error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"\n{self.stopped}")
        else:
            sys.__excepthook__(kind, error, trace)

    def _begin(self, parser: CourseParser, keep: bool = False) -> None:
        """Remove what an earlier run listed as its own, or ``keep`` it; begin this run's list."""
        with suppress(OSError, ValueError, LookupError, TypeError):  # no list, or none of ours
            left = json.loads((self.folder / LIST).read_text(encoding="utf-8"))
            own = {self.folder / name for name in left["files"]}
            if keep:
                self._own, self._events = own, [*left["events"], *self._events]
            else:
                for process, since in left["events"]:
                    files = self.folder.rglob(f"events.out.tfevents.*.{process}.*")
                    own |= {file for file in files if int(file.name.split(".")[3]) >= since}
                self._remove(own.union(*map(checkpoints, own)))
            self._own.add(self.folder / LIST)
        self._list()

    def _remove(self, own: Iterable[Path]) -> None:
        """Remove files, and folders if they are empty then."""
        for path in sorted(own, reverse=True):  # what is in a folder comes before the folder
            if path.parent.resolve().is_relative_to(self.folder):  # not by ".." or a link elsewhere
                with suppress(OSError):  # such as a folder that holds other things
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
                    for folder in path.parents:  # up to the run's, which holds the list
                        folder.rmdir()

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
        """Write the list: what the run made in its folder, and what is in these folders by now."""
        path = self.path(LIST)
        files = self._own.union(*(own.rglob("*") for own in self._own)) - {path}
        names = sorted(file.relative_to(self.folder).as_posix() for file in files)
        own = {"script": self.script, "events": self._events, "files": names}
        write_json(path, own | {"unfinished": self.unfinished})

    def log_dir(self, name: str = "") -> str:
        """The folder for the TensorBoard run ``name``. (Give TensorFlow 1's FileWriter a ``path``
        instead: its event files don't tell whose they are.)"""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def save_figure(self, figure: Any, name: str) -> Path:
        """Save a figure as ``<name>.png`` and for TensorBoard's Images tab; print its path."""
        import tensorflow as tf

        path = self.path(f"{name}.png")
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=120)
        if self._figure_writer is None:
            self._figure_writer = tf.summary.create_file_writer(self.log_dir("figures"))
        with self._figure_writer.as_default():
            tf.summary.image(name, tf.io.decode_png(path.read_bytes())[tf.newaxis], step=0)
            tf.summary.flush()
        self.figures.append(path)
        print(f"Figure: {readable(path)}")
        return path

    def skip(self, reason: str) -> NoReturn:
        """End a script that can show nothing true here; ``reason`` says what is missing and how
        to get it. ``course.py run`` reports it as skipped."""
        print(f"Skipped: {reason}")
        sys.exit(SKIPPED)

    def finish(
        self, metrics: Mapping[str, float], data: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """Write ``result.json``, print the first four metrics and the TensorBoard command.
        Accuracies are fractions; ``data`` is ``{"source": str, "stand_in": bool}``, None for a
        script that makes its own. A training adds ``train_seconds`` and ``parameters``."""
        versions = {p: importlib.metadata.version(p) for p in ("tensorflow", "keras", "numpy")}
        result = {
            "script": self.script,
            "arguments": self.arguments,
            "seed": self.args.seed,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "seconds": round(time.perf_counter() - self.started, 3),
            "train_seconds": None,
            "parameters": None,
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
        print(f"TensorBoard: {tensorboard_command(self.folder)}")
        if self.args.show and self.figures:
            sys.modules["matplotlib.pyplot"].show()
