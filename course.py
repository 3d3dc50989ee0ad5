"""The course as a whole: list its chapters, check the machine, run and record its scripts.

python course.py                      the chapters, and what each script gave last time
python course.py check                is this machine ready, and how fast is it?
python course.py run                  run everything quickly, a few minutes in all
python course.py run --full           run everything in full
python course.py run cnn first_try/04 run what matches a part of the path, or a pattern: "*mnist*"
python course.py record cnn           run in full, with several seeds, and keep the results in docs/
python course.py record --readme      write the recorded results into the READMEs
python course.py record --stale       which records are missing, or older than their code?
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from course_check import MACHINE, check_machine, measure_machine

if __name__ == "__main__" and sys.argv[1:] == ["check"]:  # before what may be missing is imported
    sys.exit(check_machine())

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    import course_records as records
    from utils.run import (
        SKIPPED,
        format_metric,
        positive_int,
        quoted,
        readable,
        write_json,
    )
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}. This Python ({sys.executable}) lacks what the course needs. Run `make course`, "
        f"or: {sys.executable} -m pip install -r requirements.txt\n"
        f"{sys.executable} course.py check tells more."
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
COLOURS = {"ok": "green", "skipped": "cyan", "failed": "red", "stopped": "yellow"}
LAST_LINES = 20  # of a failed script's output
SEEDS = 3  # with which a script that states a test accuracy is recorded
WEIGHTS = {  # of InceptionV3: which parts of them the scripts need that begin so
    "inception_v3/direct_apply/02": ("top", "index"),
    "inception_v3/pool3_train/01": ("notop",),
    "inception_v3/slim_train/02": ("notop",),
}


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
        return read_json(files[-1]) if files else None


@dataclass(frozen=True)
class Outcome:
    """How one script's run ended."""

    script: Script
    status: str  # "ok", "skipped", "failed" or "stopped"
    seconds: float
    folder: Path
    last_lines: list[str]  # of what the script printed

    @property
    def result(self) -> dict[str, Any] | None:
        """What the script left in its ``result.json``."""
        return read_json(self.folder / "result.json")

    @property
    def told(self) -> str:
        """The key result, or why the script was skipped."""
        if self.status == "skipped":
            said = [line for line in self.last_lines if line.startswith("Skipped:")]
            return said[-1].removeprefix("Skipped:").strip() if said else "it gave no reason"
        return key_result(self.result)


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


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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


def expected_time(script: Script, machine: dict[str, Any] | None) -> str:
    """How long the script takes on this machine, as far as is known."""
    if record := records.read_record(script.name):
        if machine:
            return f"about {records.time_cell(records.expected_seconds(record, machine))}"
        return records.time_cell(record["seconds"]["mean"])
    return script.time


def list_course(console: Console) -> None:
    """Print every chapter's scripts: title, what it teaches, time, and its last result."""
    machine = read_json(MACHINE)
    for chapter in CHAPTERS:
        scripts = [script for script in find_scripts() if script.name.startswith(f"{chapter}/")]
        if not scripts:
            continue
        table = Table(title=chapter, title_justify="left", expand=True)
        table.add_column("script", ratio=3, overflow="fold")
        table.add_column("what it teaches", ratio=5)
        table.add_column("time in full", ratio=2)
        table.add_column("last result", ratio=2)
        for script in scripts:
            last = script.last_result()
            shown = key_result(last) or "not run yet"
            if last and last["arguments"].get("quick"):
                shown += " (quick)"
            number_and_name = script.name.removeprefix(f"{chapter}/")
            title = f"{number_and_name}\n[dim]{escape(script.title)}[/dim]"
            time_here = expected_time(script, machine)
            table.add_row(title, escape(script.teaches), escape(time_here), escape(shown))
        console.print(table)
    console.print(
        f"Times are estimated for this machine: {machine['convolution_gflops']:.0f} GFLOP/s."
        if machine
        else "Times are as recorded. `python course.py check` measures this machine, to estimate "
        "its own."
    )
    console.print("Run them: python course.py run [PATTERN …] [--full]")


def run_script(
    script: Script, folder: Path, flags: list[str], console: Console, place: str
) -> Outcome:
    """Run one script in a process of its own, showing the last line of its output live. All of
    it goes to ``log.txt`` in the run's ``folder``; a failed script's last lines are printed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / script.name), "--run-dir", str(folder), *flags]
    started = time.perf_counter()
    status = "stopped"
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
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
            console.status(f"{escape(place)} {script.name}") as live,
        ):
            for line in process.stdout:
                log.write(line)
                log.flush()
                last_lines.append(line.rstrip())
                if line.strip():
                    seconds = time.perf_counter() - started
                    last = escape(line.strip()[: max(console.width - 60, 20)])
                    live.update(f"{escape(place)} {script.name} {seconds:.0f} s  [dim]{last}[/dim]")
        status = {0: "ok", SKIPPED: "skipped"}.get(process.returncode, "failed")
    except KeyboardInterrupt:  # Ctrl-C reaches the script too, which may have things to finish
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    outcome = Outcome(script, status, time.perf_counter() - started, folder, [*last_lines])
    say(console, f"{place} {script.name}: {status} after {outcome.seconds:.0f} s  {outcome.told}")
    if status == "failed":
        console.print(f"The last lines of {readable(folder / 'log.txt')}:", style="red")
        say(console, "\n".join(last_lines))
    return outcome


def say(console: Console, text: str) -> None:
    """Print ``text`` as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def label(more: str = "") -> str:
    """The name of a new run's folder."""
    return f"{datetime.now():%Y%m%d-%H%M%S}{more}"


def run_course(scripts: list[Script], full: bool, console: Console) -> int:
    """Run the scripts one after another, whatever each one's fate, and print a table.

    Returns:
        The exit status: 0 if none failed, 1 if any did, 130 after Ctrl-C.
    """
    outcomes: list[Outcome] = []
    for number, script in enumerate(scripts, start=1):
        folder = script.runs / label("" if full else "-quick")
        flags = [] if full else ["--quick"]
        place = f"[{number}/{len(scripts)}]"
        outcomes.append(run_script(script, folder, flags, console, place))
        if outcomes[-1].status == "stopped":
            break

    mode = "in full" if full else "quickly: figures are a first look, not the README's"
    table = Table(title=f"The course, run {mode}", title_justify="left")
    table.add_column("script", overflow="fold")
    table.add_column("status")
    table.add_column("seconds", justify="right")
    table.add_column("key result, or what is missing")
    table.add_column("figures and log", overflow="fold")
    for outcome in outcomes:
        table.add_row(
            outcome.script.name,
            f"[{COLOURS[outcome.status]}]{outcome.status}[/]",
            f"{outcome.seconds:.0f}",
            escape(outcome.told),
            escape(readable(outcome.folder)),
        )
    console.print(table)
    total = sum(outcome.seconds for outcome in outcomes)
    count = Counter(outcome.status for outcome in outcomes)
    skipped = f", {count['skipped']} skipped," if count["skipped"] else ""
    console.print(f"{count['ok']} of {len(scripts)} scripts succeeded{skipped} in {total:.0f} s.")
    program = Path(sys.executable).with_name("tensorboard")  # also with no venv activated
    console.print("See all runs:", quoted(program, "--logdir", ROOT / "runs"), soft_wrap=True)
    return 130 if count["stopped"] else 1 if count["failed"] else 0


def fetch_weights(scripts: list[Script], console: Console) -> None:
    """Fetch what the scripts need of InceptionV3 and what is not on this machine, unless
    COURSE_OFFLINE forbids it. Without it they do what they can, and say so."""
    needs = [parts for start, parts in WEIGHTS.items() for s in scripts if s.name.startswith(start)]
    if not needs or os.environ.get("COURSE_OFFLINE", "") not in ("", "0"):
        return
    from models import inception_v3

    for part in dict.fromkeys(part for parts in needs for part in parts):
        for name in inception_v3.PARTS[part]:
            if inception_v3.on_this_machine(name) is None:
                size = inception_v3.SIZES[name]
                say(console, f"{name} is fetched now, {size}, once. COURSE_OFFLINE=1 forbids it.")
                if inception_v3.find_file(name) is None:
                    return  # no connection


def why_not_recorded(outcome: Outcome) -> str:
    """What keeps a run's result out of the records; empty if nothing does."""
    if outcome.status != "ok":
        return "a run failed" if outcome.status == "failed" else "it was skipped"
    if (result := outcome.result) is None:
        return "a run left no result.json"
    if result["arguments"].get("quick"):
        return "quick runs are not recorded"
    return "results of stand-in data are not recorded" if result["data"]["stand_in"] else ""


def record_script(
    script: Script,
    seeds: int,
    machine: dict[str, Any],
    console: Console,
    place: str,
    weights: str | None = None,
) -> str:
    """Run a script in full and keep what it gives. One that states a test accuracy runs with the
    seeds 1 to ``seeds``, the others once. ``weights`` is a file for the scripts that take one.

    Returns:
        Why it was not recorded; empty if it was.
    """
    code = records.code_of(script.name)
    outcomes: list[Outcome] = []
    runs, wanted = script.runs, 1
    while len(outcomes) < wanted:
        seed = len(outcomes) + 1
        flags = ["--seed", str(seed)]
        if weights and "add_weights_flag(" in (ROOT / script.name).read_text(encoding="utf-8"):
            flags += ["--weights", weights]
        folder = runs / label(f"-seed-{seed}")
        outcomes.append(run_script(script, folder, flags, console, f"{place} seed {seed}"))
        if outcomes[-1].status == "stopped":
            raise KeyboardInterrupt
        if why := why_not_recorded(outcomes[-1]):
            return why
        if "test_accuracy" in outcomes[0].result["metrics"]:
            wanted = seeds
        # Elsewhere, so that a script that uses what this one left finds what seed 1 left.
        runs = ROOT / "runs" / "more_seeds" / script.runs.relative_to(ROOT / "runs")
    if records.code_of(script.name) != code:
        return "its code was changed while it ran"
    results, seconds = zip(*((run.result, run.seconds) for run in outcomes), strict=True)
    record = records.make_record(results, seconds, code, machine)
    write_json(records.record_path(script.name), record)
    say(console, f"{place} {script.name}: {records.result_cell(record)}")
    return ""


def record_course(
    scripts: list[Script], seeds: int, console: Console, weights: str | None = None
) -> int:
    """Record the scripts one after another, whatever each one's fate.

    Returns:
        The exit status: 0 if all were recorded, 1 if any was not.
    """
    machine, fault = measure_machine()
    if fault:
        sys.exit(f"TensorFlow does not work here: {fault}. `python course.py check` tells more.")
    speed = f"{machine['convolution_gflops']} GFLOP/s, {machine['cores']} cores"
    say(console, f"This machine: {machine['cpu']}, {speed}")
    recorded = 0
    for number, script in enumerate(scripts, start=1):
        place = f"[{number}/{len(scripts)}]"
        why = record_script(script, seeds, machine, console, place, weights)
        recorded += not why
        if why:
            say(console, f"{place} {script.name}: NOT RECORDED, {why}.")
    say(console, f"{recorded} of {len(scripts)} scripts recorded in {readable(records.RESULTS)}.")
    return 0 if recorded == len(scripts) else 1


def list_stale(scripts: list[Script]) -> int:
    """Print which records are missing or older than their code; exit status 1 if any is."""
    stale = {script.name: why for script in scripts if (why := records.why_stale(script.name))}
    for name, why in stale.items():
        print(f"{name}: {why}")
    if not stale:
        print(f"All {len(scripts)} records are of the code as it is.")
    return 1 if stale else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="{list,check,run,record}")
    commands.add_parser("list", help="list chapters and scripts (what no command does, too)")
    commands.add_parser("check", help="report on this machine: packages, CPU, speed, data")
    run = commands.add_parser("run", help="run all or the matching scripts")
    run.add_argument("--full", action="store_true", help="full runs, not --quick ones")
    record = commands.add_parser("record", help="run in full and keep the results")
    record.add_argument(
        "--seeds", type=positive_int, default=SEEDS, help=f"how many (default: {SEEDS})"
    )
    record.add_argument("--weights", metavar="FILE", help="of InceptionV3 (default: Keras's)")
    record.add_argument("--readme", action="store_true", help="write the records to the READMEs")
    record.add_argument("--stale", action="store_true", help="list records to be made anew")
    for command in (run, record):
        command.add_argument("pattern", nargs="*", help="part of a path, or a shell pattern")
    args = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    # In a log file or a pipe there is no width to fit: leave room for the paths.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.command == "check":
        return check_machine()
    if args.command == "run":
        scripts = matching(find_scripts(), args.pattern)
        try:
            fetch_weights(scripts, console)
        except KeyboardInterrupt:
            return 130
        return run_course(scripts, args.full, console)
    if args.command == "record":
        every = find_scripts()
        recorded = [script for script in every if script.name not in records.UNRECORDED]
        scripts = matching(every, args.pattern) if args.pattern else recorded
        if args.readme:
            changed = records.rewrite_readmes([script.name for script in every])
            print("\n".join(changed) or "The READMEs say what the records say.")
            return 0
        if args.stale:
            return list_stale(scripts)
        try:
            return record_course(scripts, args.seeds, console, args.weights)
        except KeyboardInterrupt:
            return 130
    list_course(console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
