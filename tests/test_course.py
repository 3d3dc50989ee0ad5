"""course.py on a small course made by the test: listing, choosing, running, failing, stopping."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, load_script

GOOD = '''"""A good script
=============

You learn: how to succeed,
at once.

Time: no time at all.
"""
import json, pathlib, sys

folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
result = {"metrics": {"loss": 0.5, "test_accuracy": 0.98765},
          "arguments": {"quick": "--quick" in sys.argv},
          "data": {"source": "x", "stand_in": STAND_IN}}
(folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
print("schön, 好")
'''
BAD = '''"""A bad script
============
"""
for number in range(50):
    print("line", number)
raise SystemExit("the disk is full [of sand]")
'''


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A project of two chapters and three scripts, the second of which fails."""
    for name, text in {
        "first_try/01_good.py": GOOD.replace("STAND_IN", "False"),
        "first_try/02_bad.py": BAD,
        "first_try/helper.py": "",
        "rnn/01_good.py": GOOD.replace("STAND_IN", "True"),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    program = (ROOT / "course.py").read_text(encoding="utf-8")
    (tmp_path / "course.py").write_text(program, encoding="utf-8")
    return tmp_path


def run_course(course: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "course.py", *arguments],
        cwd=course,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
    )


def test_lists_only_chapters_that_exist_and_what_their_docstrings_say(course):
    done = run_course(course)
    assert done.returncode == 0, done.stderr
    for text in ("01_good.py", "A good script", "how to succeed, at once.", "no time at all."):
        assert text in done.stdout
    assert done.stdout.count("not run yet") == 3
    assert "captcha" not in done.stdout
    assert "helper" not in done.stdout


def test_goes_on_after_a_failure_and_says_so(course):
    done = run_course(course, "run")
    assert done.returncode == 1
    assert "[1/3] first_try/01_good.py: ok" in done.stdout
    assert "[2/3] first_try/02_bad.py: failed" in done.stdout
    assert "[3/3] rnn/01_good.py: ok" in done.stdout
    assert "2 of 3 scripts succeeded" in done.stdout
    assert "the disk is full [of sand]" in done.stdout, "the failed script's last lines"
    assert "line 49" in done.stdout
    assert "line 5\n" not in done.stdout, "only the last lines"
    assert "test accuracy 98.77% (stand-in data)" in done.stdout
    (log,) = (course / "runs/first_try/01_good").glob("*-quick/log.txt")
    assert log.read_text(encoding="utf-8") == "schön, 好\n"
    listed = run_course(course).stdout
    assert listed.count("not run yet") == 1
    assert "test accuracy 98.77%" in listed


def test_runs_what_matches_in_full_and_exits_with_0(course):
    done = run_course(course, "run", "rnn", "*/01*", "--full")
    assert done.returncode == 0
    assert "2 of 2 scripts succeeded" in done.stdout
    (result,) = (course / "runs/rnn/01_good").glob("*/result.json")
    assert json.loads(result.read_text(encoding="utf-8"))["arguments"]["quick"] is False


def test_refuses_a_pattern_that_matches_nothing(course):
    done = run_course(course, "run", "cnnn")
    assert done.returncode == 1
    assert "No script matches 'cnnn'" in done.stderr
    assert "rnn/01_good.py" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way on Windows")
def test_ctrl_c_stops_the_script_and_still_prints_the_table(course):
    (course / "first_try/01_good.py").write_text(
        '"""Slow"""\nimport time\nprint("started")\ntime.sleep(60)\n', encoding="utf-8"
    )
    process = subprocess.Popen(
        [sys.executable, "course.py", "run"],
        cwd=course,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any(
        "started" in log.read_text(encoding="utf-8")
        for log in course.glob("runs/first_try/01_good/*/log.txt")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "01_good.py: stopped" in output
    assert "02_bad" not in output


def test_every_script_of_the_course_describes_itself():
    course = load_script("course.py")
    scripts = course.find_scripts()
    assert scripts
    for script in scripts:
        text = (ROOT / script.name).read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(text))
        title, underline = doc.splitlines()[:2]
        assert underline == "=" * len(title), f"{script.name}: title and its line differ in length"
        assert script.teaches, f"{script.name}: no 'You learn:'"
        assert script.time, f"{script.name}: no 'Time:'"
        assert "You should see:" in doc, f"{script.name}: no 'You should see:'"
        assert f"python {script.name}" in doc, f"{script.name}: the command is not in its docstring"
        assert "\n# %%\n" in text, f"{script.name}: no cells"


def test_every_script_is_in_the_readme_of_its_chapter():
    for script in load_script("course.py").find_scripts():
        chapter, *_, name = script.name.split("/")
        assert name in (ROOT / chapter / "README.md").read_text(encoding="utf-8")
