"""What every script of the course shares: its flags, its run folder, its result."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IN_NOTEBOOK = "ipykernel" in sys.modules  # Jupyter, or an editor that runs the cells


def _argument(kind: type, good: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """An argparse type that says in words what it wants."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


positive_int = _argument(int, lambda n: n >= 1, "a whole number from 1")
seed_int = _argument(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 4294967295")
positive_float = _argument(float, lambda x: 0 < x < float("inf"), "a number above 0")
fraction = _argument(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
existing_dir = _argument(Path, Path.is_dir, "a folder")


class CourseParser(argparse.ArgumentParser):
    """An argument parser whose flags may have a second default, used with ``--quick``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.quick_defaults: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: str, quick: Any = None, **kwargs: Any) -> argparse.Action:
        """Like argparse's; ``quick`` is the default with ``--quick``. The help shows both."""
        if kwargs.get("default") not in (None, False, argparse.SUPPRESS):
            also = "" if quick is None else f"; with --quick {quick}"
            kwargs["help"] += f" (default: %(default)s{also})"
        action = super().add_argument(*names, **kwargs)
        if quick is not None:
            self.quick_defaults[action.dest] = quick
        return action

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """Parse; with ``--quick``, flags that were not given take their quick defaults."""
        args = [] if IN_NOTEBOOK and args is None else args  # its command line is not ours
        if super().parse_args(args, namespace).quick:
            self.set_defaults(**self.quick_defaults)
        return super().parse_args(args, namespace)


def make_parser(doc: str) -> CourseParser:
    """The parser with the flags that all scripts have; ``doc`` is the script's docstring."""
    parser = CourseParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a first look in seconds: less data, fewer steps")
    add("--seed", type=seed_int, default=1, help="same seed, same result on the same machine")
    where = "put the run folder at DIR itself, replacing an earlier run there (default: a new one)"
    add("--run-dir", type=Path, metavar="DIR", help=where)
    add("--show", action="store_true", help="open figure windows as well as saving the figures")
    return parser


def add_data_dir(parser: CourseParser) -> None:
    """Add ``--data-dir``, the flag of every script that reads a data set."""
    text = "folder that holds mnist/ etc. (default: $COURSE_DATA, earlier downloads, a download)"
    parser.add_argument("--data-dir", type=existing_dir, metavar="DIR", help=text)


def make_deterministic(seed: int) -> None:
    """Seed Python, NumPy, TensorFlow and Keras, and have TensorFlow add in a fixed order."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name, of the same suffix, that is renamed to ``path`` if the block
    succeeds: a half-written file never bears the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented UTF-8 JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def readable(path: Path) -> str:
    """The path as a person would type it: relative to the working directory if below it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def tensorboard_command(log_dir: Path) -> str:
    """The exact command that shows ``log_dir`` in TensorBoard, also with no venv activated."""
    beside_python = str(Path(sys.executable).with_name("tensorboard"))
    program = "tensorboard" if shutil.which("tensorboard") else beside_python
    words = [program, "--logdir", readable(log_dir)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def format_metric(name: str, value: float) -> str:
    """A metric as a person reads it: accuracies in percent, others with four digits."""
    words = name.replace("_", " ")
    return f"{words} {value:.2%}" if name.endswith("accuracy") else f"{words} {value:.4g}"


class Run:
    """One run of a script: ``args``, and ``folder`` for event files, figures, ``result.json``."""

    def __init__(self, parser: CourseParser, script: str | Path) -> None:
        if hasattr(sys.stdout, "reconfigure"):  # a console that can't show a sign shows "?"
            sys.stdout.reconfigure(errors="replace")
        self.args = parser.parse_args()
        self.started = time.perf_counter()
        path = Path(script).resolve()
        self.script = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        self.figures: list[Path] = []
        self._figure_writer: Any = None
        if "matplotlib" in sys.modules and not self.args.show and not IN_NOTEBOOK:
            sys.modules["matplotlib"].use("Agg")  # draws into files, needs no screen
        try:
            self.folder = self._make_folder()
        except OSError as error:
            parser.error(f"can't make the run folder {error.filename}: {error.strerror}")
        self.resuming = self._was_interrupted()
        sys.excepthook = self._excepthook

    def _make_folder(self) -> Path:
        folder = self.args.run_dir
        if folder is None:
            label = f"{datetime.now():%Y%m%d-%H%M%S}{'-quick' if self.args.quick else ''}"
            folder = ROOT / "runs" / Path(self.script).with_suffix("") / label
            number = 2
            while folder.exists():  # two runs may start in the same second
                folder = folder.with_name(f"{label}-{number}")
                number += 1
        folder = folder.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        return folder

    def _was_interrupted(self) -> bool:
        """True if the folder holds a run with the same settings that did not come to its end."""
        settings = {k: v for k, v in self.args_as_json().items() if k not in ("run_dir", "show")}
        settings |= {"script": self.script, "COURSE_DATA": os.environ.get("COURSE_DATA")}
        note = self.folder / "unfinished.json"
        try:
            if json.loads(note.read_text(encoding="utf-8")) == settings:
                return True
        except (OSError, ValueError):
            pass
        shutil.rmtree(self.backup, ignore_errors=True)  # of a run with other settings
        write_json(note, settings)
        return False

    @property
    def backup(self) -> Path:
        """Where a training keeps what it needs to go on; there until the run is finished."""
        return self.folder / "backup"

    def args_as_json(self) -> dict[str, Any]:
        return {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.args).items()}

    def _excepthook(self, kind: type, error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            folder = readable(self.folder)
            print(f"\nStopped. The same command with --run-dir {folder} goes on from there.")
        else:
            sys.__excepthook__(kind, error, trace)

    @property
    def verbose(self) -> int:
        """Keras's ``verbose``: a live bar on a terminal, a line an epoch in a log file."""
        return 1 if sys.stdout.isatty() else 2

    def log_dir(self, name: str = "") -> str:
        """The folder for the TensorBoard run ``name``. Event files of an earlier run go, since
        TensorBoard would draw them into the same curves; those of an interrupted one stay."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in () if self.resuming else folder.glob("events.out.tfevents.*"):
            old.unlink()
        return str(folder)

    def save_figure(self, figure: Any, name: str) -> Path:
        """Save a figure as ``<name>.png`` and for TensorBoard's Images tab; print its path."""
        import tensorflow as tf

        from utils.summary import figure_to_image

        path = self.folder / f"{name}.png"
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=120)
        if self._figure_writer is None:
            self._figure_writer = tf.summary.create_file_writer(self.log_dir("figures"))
        with self._figure_writer.as_default():
            tf.summary.image(name, figure_to_image(figure), step=0)
            tf.summary.flush()
        self.figures.append(path)
        print(f"Figure: {readable(path)}")
        return path

    def finish(
        self,
        metrics: Mapping[str, float],
        *,
        data: Mapping[str, Any] | None = None,
        train_seconds: float | None = None,
        parameters: int | None = None,
        **more: Any,
    ) -> None:
        """Write ``result.json``, print the result and the TensorBoard command, show figures.

        ``metrics``: accuracies are fractions. ``data``: ``{"source": str, "stand_in": bool}``,
        None when the script makes its own. ``train_seconds``: those of training alone.
        ``parameters``: how many are trained. ``more``: further entries for the file.
        """
        versions = {p: importlib.metadata.version(p) for p in ("tensorflow", "keras", "numpy")}
        result = {
            "script": self.script,
            "arguments": self.args_as_json(),
            "seed": self.args.seed,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "seconds": round(time.perf_counter() - self.started, 3),
            "train_seconds": None if train_seconds is None else round(train_seconds, 3),
            "parameters": parameters,
            "data": dict(data or {"source": "made by the script", "stand_in": False}),
            "figures": [path.name for path in self.figures],
            "versions": {"python": platform.python_version(), **versions},
            **more,
        }
        write_json(self.folder / "result.json", result)
        (self.folder / "unfinished.json").unlink(missing_ok=True)
        shutil.rmtree(self.backup, ignore_errors=True)
        shown = ", ".join(format_metric(name, value) for name, value in result["metrics"].items())
        warning = " [STAND-IN DATA, not the real data set]" if result["data"]["stand_in"] else ""
        print(f"\nResult: {shown}{warning}")
        print(f"TensorBoard: {tensorboard_command(self.folder)}")
        if self.args.show and self.figures:
            sys.modules["matplotlib.pyplot"].show()
