"""The course as a whole: list its chapters, run all or some of its scripts.

python course.py                      the chapters, and what each script gave last time
python course.py run                  run everything quickly, a few minutes in all
python course.py run --full           run everything in full
python course.py run cnn first_try/04 run what matches a part of the path, or a pattern: "*mnist*"
"""

import argparse
import ast
import fnmatch
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from utils.run import format_metric, readable, tensorboard_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}. This Python ({sys.executable}) lacks what the course needs. Run `make course`, "
        f"or: {sys.executable} -m pip install -r requirements.txt"
    )

ROOT = Path(__file__).resolve().parent
CHAPTERS = (
    "first_try",
    "linear",
    "tensorboard_demos",
    "cnn",
    "rnn",
    "inception_v3",
    "captcha_multitask",
)
LAST_LINES = 20  # of a failed script's output


@dataclass(frozen=True)
class Script:
    """One script of the course, as its docstring describes it.

    Attributes:
        name: its path in the project, e.g. ``"cnn/01_mnist_conv_layers.py"``.
        title: the first line of its docstring.
        teaches: the paragraph that begins "You learn:".
        time: the paragraph that begins "Time:".
    """

    name: str
    title: str
    teaches: str
    time: str

    @property
    def runs(self) -> Path:
        """The folder of its run folders."""
        return ROOT / "runs" / Path(self.name).with_suffix("")

    def last_result(self) -> dict[str, Any] | None:
        """The ``result.json`` of its latest finished run; None if it never finished one."""
        files = sorted(self.runs.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
        return read_result(files[-1].parent) if files else None


@dataclass(frozen=True)
class Outcome:
    """How one script's run ended."""

    script: Script
    status: str  # "ok", "failed" or "stopped"
    seconds: float
    folder: Path

    @property
    def log(self) -> Path:
        """Everything the script printed."""
        return self.folder / "log.txt"


def find_scripts() -> list[Script]:
    """All scripts, in the order of the course. Chapters that do not exist are left out."""
    paths = (path for chapter in CHAPTERS for path in sorted((ROOT / chapter).rglob("[0-9]*_*.py")))
    return [describe(path) for path in paths]


def describe(path: Path) -> Script:
    """Read what a script says of itself from its docstring, without running it."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    paragraphs = [" ".join(paragraph.split()) for paragraph in doc.split("\n\n")]

    def said(label: str) -> str:
        found = (text for text in paragraphs if text.startswith(f"{label}:"))
        return next(found, "").removeprefix(f"{label}:").strip()

    name = path.relative_to(ROOT).as_posix()
    return Script(name, doc.splitlines()[0], said("You learn"), said("Time"))


def matching(scripts: list[Script], patterns: list[str]) -> list[Script]:
    """The scripts whose path contains one of ``patterns`` or fits it as a shell pattern; all
    of them when there are no patterns.

    Raises:
        SystemExit: a pattern fits no script.
    """
    if not patterns:
        return scripts

    def fits(script: Script, pattern: str) -> bool:
        pattern = pattern.replace("\\", "/")
        return pattern in script.name or fnmatch.fnmatch(script.name, pattern)

    for pattern in patterns:
        if not any(fits(script, pattern) for script in scripts):
            names = "\n  ".join(script.name for script in scripts)
            sys.exit(f"No script matches {pattern!r}. There are:\n  {names}")
    return [script for script in scripts if any(fits(script, pattern) for pattern in patterns)]


def read_result(folder: Path) -> dict[str, Any] | None:
    """The ``result.json`` in a run folder; None if it is missing or damaged."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def key_result(result: dict[str, Any] | None) -> str:
    """The one figure that tells most: the test accuracy if there is one, else the first."""
    if not result or not result["metrics"]:
        return ""
    metrics = result["metrics"]
    name = "test_accuracy" if "test_accuracy" in metrics else next(iter(metrics))
    stand_in = " (stand-in data)" if result["data"]["stand_in"] else ""
    return format_metric(name, metrics[name]) + stand_in


def list_course(console: Console) -> None:
    """Print every chapter's scripts: title, what it teaches, time, and its last result."""
    for chapter in CHAPTERS:
        scripts = [script for script in find_scripts() if script.name.startswith(f"{chapter}/")]
        if not scripts:
            continue
        table = Table(title=chapter, title_justify="left", expand=True)
        table.add_column("script", ratio=3, overflow="fold")
        table.add_column("what it teaches", ratio=5)
        table.add_column("time", ratio=2)
        table.add_column("last result", ratio=2)
        for script in scripts:
            last = script.last_result()
            shown = key_result(last) or "not run yet"
            if last and last["arguments"].get("quick"):
                shown += " (quick)"
            number_and_name = script.name.removeprefix(f"{chapter}/")
            title = f"{number_and_name}\n[dim]{escape(script.title)}[/dim]"
            table.add_row(title, escape(script.teaches), escape(script.time), escape(shown))
        console.print(table)
    console.print("Run them: python course.py run [PATTERN …] [--full]")


def run_script(script: Script, full: bool, console: Console, place: str) -> Outcome:
    """Run one script in a process of its own, showing the last line of its output live."""
    label = f"{datetime.now():%Y%m%d-%H%M%S}{'' if full else '-quick'}"
    folder = script.runs / label
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / script.name), "--run-dir", str(folder)]
    command += [] if full else ["--quick"]
    started = time.perf_counter()
    status = "stopped"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
    )
    try:
        with (
            process,
            (folder / "log.txt").open("w", encoding="utf-8") as log,
            console.status(f"{place} {script.name}") as live,
        ):
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.strip():
                    seconds = time.perf_counter() - started
                    last = escape(line.strip()[: max(console.width - 60, 20)])
                    live.update(f"{place} {script.name} {seconds:.0f} s  [dim]{last}[/dim]")
        status = "ok" if process.returncode == 0 else "failed"
    except KeyboardInterrupt:  # Ctrl-C reaches the script too, which may have things to finish
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return Outcome(script, status, time.perf_counter() - started, folder)


def run_course(scripts: list[Script], full: bool, console: Console) -> int:
    """Run the scripts one after another, whatever each one's fate, and print a table.

    Returns:
        The exit status: 0 if all succeeded, 1 if any failed, 130 after Ctrl-C.
    """
    outcomes: list[Outcome] = []
    for number, script in enumerate(scripts, start=1):
        place = f"[{number}/{len(scripts)}]"
        outcome = run_script(script, full, console, escape(place))
        outcomes.append(outcome)
        result = key_result(read_result(outcome.folder))
        line = f"{place} {script.name}: {outcome.status} after {outcome.seconds:.0f} s  {result}"
        console.print(line, markup=False, highlight=False)
        if outcome.status == "stopped":
            break
        if outcome.status == "failed":
            lines = outcome.log.read_text(encoding="utf-8").splitlines()[-LAST_LINES:]
            console.print(f"The last lines of {readable(outcome.log)}:", style="red")
            console.print("\n".join(lines), markup=False, highlight=False)

    mode = "in full" if full else "quickly: figures are a first look, not the README's"
    table = Table(title=f"The course, run {mode}", title_justify="left")
    table.add_column("script", overflow="fold")
    table.add_column("status")
    table.add_column("seconds", justify="right")
    table.add_column("key result")
    table.add_column("figures and log", overflow="fold")
    colours = {"ok": "green", "failed": "red", "stopped": "yellow"}
    for outcome in outcomes:
        table.add_row(
            outcome.script.name,
            f"[{colours[outcome.status]}]{outcome.status}[/]",
            f"{outcome.seconds:.0f}",
            escape(key_result(read_result(outcome.folder))),
            escape(readable(outcome.folder)),
        )
    console.print(table)
    total = sum(outcome.seconds for outcome in outcomes)
    good = sum(outcome.status == "ok" for outcome in outcomes)
    console.print(f"{good} of {len(scripts)} scripts succeeded in {total:.0f} s.")
    console.print(f"See all runs: {tensorboard_command(ROOT / 'runs')}", soft_wrap=True)
    if any(outcome.status == "stopped" for outcome in outcomes):
        return 130
    return 0 if good == len(scripts) else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="{list,run}")
    commands.add_parser("list", help="list chapters and scripts (what no command does, too)")
    run = commands.add_parser("run", help="run all or the matching scripts")
    run.add_argument("pattern", nargs="*", help="part of a path, or a shell pattern")
    run.add_argument("--full", action="store_true", help="full runs, not --quick ones")
    args = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    # In a log file or a pipe there is no width to fit: leave room for the paths.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.command != "run":
        list_course(console)
        return 0
    return run_course(matching(find_scripts(), args.pattern), args.full, console)


if __name__ == "__main__":
    sys.exit(main())
