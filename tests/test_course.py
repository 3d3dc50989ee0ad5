"""course.py on a small course made by the test: listing, checking, running, recording."""

import ast
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, load_script
from packaging.requirements import Requirement
from scipy.stats import binomtest

import course_records
from models import inception_v3
from models.inception_v3 import CLASS_INDEX, KERAS_NOTOP, KERAS_TOP

GOOD = '''"""A good script
=============

You learn: how to succeed,
at once.

Time: no time at all.
"""
import argparse, json, pathlib
from tools import metrics

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--run-dir", type=pathlib.Path)
args = parser.parse_args()
result = {"script": "THIS_SCRIPT", "metrics": metrics.make(args.seed), "seed": args.seed,
          "arguments": {"quick": args.quick}, "train_seconds": args.seed / 8, "parameters": 7,
          "data": {"source": "x", "stand_in": STAND_IN, "test_images": 10_000}}
(args.run_dir / "result.json").write_text(json.dumps(result), encoding="utf-8")
print("schön, 好")
'''
BAD = '''"""A bad script
============
"""
for number in range(50):
    print("line", number)
raise SystemExit("the disk is full [of sand]")
'''
SKIPPING = '''"""Has no data"""
print("Skipped: the [photos] are missing: put them into data/")
raise SystemExit(77)
'''
METRICS = '''"""What the scripts measure."""
def make(seed):
    """By seed."""
    # made up
    return {"test_loss": 0.5, "test_accuracy": 0.98 + seed / 1000}
'''
MACHINE = {"cpu": "a CPU", "cores": 2, "gpus": [], "convolution_gflops": 100.0}
ACCURACIES = [0.981, 0.982, 0.983]  # of seeds 1, 2, 3


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A project of two chapters and three scripts, the second of which fails."""
    files = {
        "first_try/01_good.py": GOOD.replace("STAND_IN", "False"),
        "first_try/02_bad.py": BAD,
        "first_try/helper.py": "",
        "rnn/01_good.py": GOOD.replace("STAND_IN", "True"),
        "tools/metrics.py": METRICS,
    }
    for name in ("course.py", "course_check.py", "course_records.py", "requirements.txt"):
        files[name] = (ROOT / name).read_text(encoding="utf-8")
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("THIS_SCRIPT", name), encoding="utf-8")
    return tmp_path


def run_course(course: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "course.py", *arguments],
        cwd=course,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": str(course), "COURSE_OFFLINE": "1"},
    )


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- list and run ----------------------------------------------------------------------------


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
    assert "test accuracy 98.10% (stand-in data)" in done.stdout
    (log,) = (course / "runs/first_try/01_good").glob("*-quick/log.txt")
    assert log.read_text(encoding="utf-8") == "schön, 好\n"
    listed = run_course(course).stdout
    assert listed.count("not run yet") == 1
    assert "test accuracy 98.10%" in listed


def test_skipped_is_neither_done_nor_failed(course):
    (course / "first_try/02_bad.py").write_text(SKIPPING, encoding="utf-8")
    done = run_course(course, "run", "first_try")
    assert done.returncode == 0
    reason = "the [photos] are missing: put them into data/"
    assert re.search(rf"02_bad\.py: skipped after \d+ s  {re.escape(reason)}\n", done.stdout)
    assert "1 of 2 scripts succeeded, 1 skipped," in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize(
    ("pattern", "offline", "asked"),
    [
        ("direct_apply", "", [KERAS_TOP, CLASS_INDEX]),
        ("slim_train", "0", [KERAS_NOTOP]),
        ("inception_v3", "", [KERAS_TOP, CLASS_INDEX, KERAS_NOTOP]),
        ("inception_v3", "1", []),
        ("first_try", "", []),
    ],
)
def test_weights_are_fetched_beforehand_once_and_only_where_needed(
    monkeypatch, capsys, pattern, offline, asked
):
    course = load_script("course.py")
    monkeypatch.setenv("COURSE_OFFLINE", offline)
    found: list[str] = []
    monkeypatch.setattr(inception_v3, "on_this_machine", lambda name: None)
    monkeypatch.setattr(inception_v3, "find_file", lambda name: found.append(name) or Path(name))
    scripts = course.matching(course.find_scripts(), [pattern])
    course.fetch_weights(scripts, course.Console())
    assert found == asked
    told = capsys.readouterr().out
    assert all(name in told for name in asked) and told.count("is fetched now") == len(asked)
    found.clear()
    monkeypatch.setattr(inception_v3, "find_file", lambda name: found.append(name))
    course.fetch_weights(scripts, course.Console())
    assert found == asked[:1], "without a connection it is tried once"


def test_runs_what_matches_in_full_and_exits_with_0(course):
    done = run_course(course, "run", "rnn", "*/01*", "--full")
    assert done.returncode == 0
    assert "2 of 2 scripts succeeded" in done.stdout
    (result,) = (course / "runs/rnn/01_good").glob("*/result.json")
    assert read(result)["arguments"]["quick"] is False


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


# ---- check -----------------------------------------------------------------------------------


def test_check_reports_every_pinned_package_and_the_speed(course):
    done = run_course(course, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            requirement = Requirement(line)  # pip's own reading of the line
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                assert f"[ok]\t{requirement.name}: {pin.version}\n" in done.stdout
    assert "The course can run." in done.stdout
    assert "FAIL" not in done.stdout
    machine = read(course / "runs/machine.json")
    assert f"speed: {machine['convolution_gflops']} GFLOP/s" in done.stdout
    assert machine["convolution_gflops"] > 0.1
    assert 1 <= machine["cores"] <= os.cpu_count()


def test_check_in_a_python_without_packages_says_what_to_install(course):
    command = [sys.executable, "-S", "course.py", "check"]
    done = subprocess.run(command, cwd=course, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(
        r"\[FAIL\]\tnot installed: tensorflow, keras, .*tensorflow-course", done.stdout
    )
    assert "-m pip install -r" in done.stdout
    listing = subprocess.run(command[:-1], cwd=course, capture_output=True, text=True)
    assert listing.returncode == 1
    assert "course.py check" in listing.stderr


# ---- record ----------------------------------------------------------------------------------


@pytest.fixture
def known_machine(course: Path) -> None:
    """Nothing is timed; the machine is a made-up one."""
    (course / "course_check.py").write_text(
        "import pathlib\nMACHINE = pathlib.Path('runs/machine.json')\n"
        f"def check_machine(): pass\ndef measure_machine(): return {MACHINE!r}, ''\n",
        encoding="utf-8",
    )


def test_records_what_succeeds_with_several_seeds_where_an_accuracy_is_stated(
    course, known_machine
):
    done = run_course(course, "record")
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines() if " seed " in line] == [
        "[1/3] seed 1 first_try/01_good.py",
        "[1/3] seed 2 first_try/01_good.py",
        "[1/3] seed 3 first_try/01_good.py",
        "[2/3] seed 1 first_try/02_bad.py",
        "[3/3] seed 1 rnn/01_good.py",
    ]
    assert "02_bad.py: NOT RECORDED, a run failed" in done.stdout
    assert "the disk is full [of sand]" in done.stdout
    assert "rnn/01_good.py: NOT RECORDED, results of stand-in data are not recorded" in done.stdout
    assert [path.name for path in course.glob("docs/results/**/*.json")] == ["01_good.json"]
    assert "1 of 3 scripts recorded" in done.stdout

    record = read(course / "docs/results/first_try/01_good.json")
    accuracy = record["metrics"]["test_accuracy"]
    assert accuracy["values"] == ACCURACIES
    assert accuracy["mean"] == pytest.approx(0.982)
    assert accuracy["sd"] == pytest.approx(statistics.stdev(ACCURACIES))
    exact = binomtest(9820, 10_000).proportion_ci(0.95, "wilson")
    assert accuracy["interval"] == pytest.approx(list(exact))
    assert record["metrics"]["test_loss"] == {"mean": 0.5, "sd": 0, "values": [0.5] * 3}
    assert record["train_seconds"]["values"] == [1 / 8, 2 / 8, 3 / 8]
    assert len(record["seconds"]["values"]) == 3
    assert record["seeds"] == [1, 2, 3]
    assert record["machine"] == MACHINE
    assert set(record["versions"]) == {"python", "tensorflow", "keras", "numpy"}
    assert set(record["code"]) == {"first_try/01_good.py", "tools/metrics.py"}
    (latest,) = (course / "runs/first_try/01_good").glob("*/result.json")
    assert read(latest)["seed"] == 1, "what the next script finds"


def test_without_a_test_accuracy_one_run_and_with_seeds_as_many(course, known_machine):
    assert run_course(course, "record", "first_try/01", "--seeds", "2").returncode == 0
    path = course / "docs/results/first_try/01_good.json"
    assert read(path)["seeds"] == [1, 2]
    plain = METRICS.replace("test_accuracy", "share")
    (course / "tools/metrics.py").write_text(plain, encoding="utf-8")
    assert run_course(course, "record", "first_try/01").returncode == 0
    assert read(path)["seeds"] == [1]
    assert read(path)["metrics"]["share"]["sd"] is None


def test_weights_are_handed_to_the_scripts_that_take_them_and_recorded(course, known_machine):
    flag = 'def add_weights_flag(p): p.add_argument("--weights")\nadd_weights_flag(parser)\nargs ='
    script = GOOD.replace("STAND_IN", "False").replace("args =", flag, 1)
    script = script.replace('"parameters": 7', '"weights": args.weights')
    (course / "rnn/01_good.py").write_text(script, encoding="utf-8")
    done = run_course(course, "record", "01_good", "--weights", "mine.h5", "--seeds", "1")
    assert done.returncode == 0, done.stdout
    records = [read(course / f"docs/results/{name}/01_good.json") for name in ("first_try", "rnn")]
    assert [record["weights"] for record in records] == [None, "mine.h5"]


def test_stale_is_what_has_other_code_and_not_what_has_other_prose(course, known_machine):
    done = run_course(course, "record", "--stale")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "first_try/01_good.py: no record",
        "first_try/02_bad.py: no record",
        "rnn/01_good.py: no record",
    ]
    run_course(course, "record", "first_try/01", "--seeds", "1")
    module = course / "tools/metrics.py"
    prose = METRICS.replace("By seed.", "Otherwise.").replace("# made up", "\n    # or not")
    module.write_text(prose, encoding="utf-8")
    script = course / "first_try/01_good.py"
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("to succeed", "to be good"), encoding="utf-8")
    done = run_course(course, "record", "--stale", "first_try/01")
    assert (done.returncode, done.stderr) == (0, "")
    module.write_text(METRICS.replace("0.98", "0.97"), encoding="utf-8")
    done = run_course(course, "record", "--stale", "first_try/01")
    assert done.returncode == 1
    assert re.search(r"01_good\.py: changed since .*: tools/metrics\.py\n", done.stdout)


def test_a_record_depends_on_what_is_used_of_a_module(monkeypatch, course):
    monkeypatch.setattr(course_records, "ROOT", course)
    module, script = course / "tools/parts.py", course / "rnn/02_use.py"
    text = """import json
import math

STEP, OTHER = 2, 3
WIDTH = 4


def used(x):
    return helper(x) + STEP


def helper(x):
    return math.sqrt(x)


def unused(x):
    return json.dumps(WIDTH)
"""
    script.write_text("from tools.parts import used\nprint(used(4))\n", encoding="utf-8")

    def hash_of(text: str) -> str:
        module.write_text(text, encoding="utf-8")
        return course_records.code_of("rnn/02_use.py")["tools/parts.py"]

    first = hash_of(text)
    for old, new in (("dumps", "loads"), ("WIDTH = 4", "WIDTH = 5"), ("import json", "import re")):
        assert hash_of(text.replace(old, new)) == first, f"{old} is not used"
    for old, new in (("STEP, OTHER = 2", "STEP, OTHER = 1"), ("sqrt", "exp"), ("import math", "")):
        assert hash_of(text.replace(old, new)) != first, f"{old} is used"
    assert hash_of(text + "\nprint('done at import')\n") != first
    script.write_text("from tools import parts\nprint(parts.used(4))\n", encoding="utf-8")
    whole = hash_of(text)
    assert hash_of(text.replace("dumps", "loads")) != whole, "a whole module was imported"


def test_a_record_depends_on_the_script_whose_run_is_used(monkeypatch, course):
    monkeypatch.setattr(course_records, "ROOT", course)
    use = f"{GOOD}\nmodel = pathlib.Path('01_good') / 'model.keras'\n"
    (course / "rnn/02_use.py").write_text(use, encoding="utf-8")
    code = course_records.code_of("rnn/02_use.py")
    assert [*code] == ["rnn/02_use.py", "rnn/01_good.py", "tools/metrics.py"]


def test_writes_the_records_into_the_tables(course, known_machine):
    run_course(course, "record", "first_try/01")
    path = course / "docs/results/first_try/01_good.json"
    record = read(path)
    record["seconds"]["mean"] = 150.1
    path.write_text(json.dumps(record), encoding="utf-8")
    chapter = """# First try
01_good.py
| script | what | result | time |
|---|---|---|---|
| [`01_good.py`](01_good.py) | a \\| b | old | |
| `02_bad.py` | fails | as it is | 7 s |

| TensorFlow 1 | TensorFlow 2 | script |
|---|---|---|
| a | b | `01_good.py` |
"""
    chinese = """<!-- measured -->
<!-- end -->
| 章 | 脚本 | 内容 | 结果 | 用时 |
|---|---|---|---|---|
|  | [`01_good.py`](first_try/01_good.py) | 好 |  |  |
|  | [`01_good.py`](rnn/01_good.py) | 没有记录 | x | y |
"""
    (course / "first_try/README.md").write_text(chapter, encoding="utf-8")
    (course / "README.zh-CN.md").write_text(chinese, encoding="utf-8")
    done = run_course(course, "record", "--readme")
    assert done.stdout.split() == ["README.zh-CN.md", "first_try/README.md"]
    assert (course / "first_try/README.md").read_text(encoding="utf-8") == chapter.replace(
        "| old | |", "| **98.20 %** ± 0.10 (97.92 to 98.44) | 3 min |"
    )
    written = (course / "README.zh-CN.md").read_text(encoding="utf-8")
    assert "| 好 | **98.20 %** ± 0.10（97.92 至 98.44） | 3 分钟 |" in written
    assert "| 没有记录 | x | y |" in written
    assert "100 GFLOP/s" in written.splitlines()[1]
    assert "say what the records say" in run_course(course, "record", "--readme").stdout


def test_expected_times_follow_the_speed_of_the_convolution(course, known_machine):
    run_course(course, "record", "first_try/01", "--seeds", "1")
    path = course / "docs/results/first_try/01_good.json"
    record = read(path)
    record |= {"seconds": {"mean": 50}, "train_seconds": {"mean": 40}}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert "50 s" in run_course(course).stdout
    for speed, expected in ((200, "about 30 s"), (25, "about 3 min")):
        machine = MACHINE | {"convolution_gflops": speed}
        (course / "runs/machine.json").write_text(json.dumps(machine), encoding="utf-8")
        assert expected in run_course(course).stdout
    assert course_records.expected_seconds(record, MACHINE) == 50


def test_results_without_an_accuracy_are_shown_by_their_first_two_metrics():
    metrics = {"steps": 30.0, "loss_left": 1.6354e-06, "third": 1.0}
    record = {"metrics": {name: {"mean": value} for name, value in metrics.items()}}
    assert course_records.result_cell(record) == "steps 30, loss left 1.635 × 10⁻⁶"
    chinese = course_records.result_cell(record, chinese=True)
    assert chinese == "`steps` 30，`loss_left` 1.635 × 10⁻⁶"
    assert [course_records.time_cell(s) for s in (0.2, 36.4, 99, 100, 150.1)] == [
        "1 s",
        "36 s",
        "99 s",
        "2 min",
        "3 min",
    ]


# ---- the course itself -----------------------------------------------------------------------


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


def test_every_script_is_in_the_readme_of_its_chapter_and_in_both_of_the_course():
    scripts = load_script("course.py").find_scripts()
    for readme in (ROOT / "README.md", ROOT / "README.zh-CN.md"):
        text = readme.read_text(encoding="utf-8")
        missing = [script.name for script in scripts if f"]({script.name})" not in text]
        assert not missing, f"{readme.name} has no row of {missing}"
    for script in scripts:
        chapter, *_, name = script.name.split("/")
        assert name in (ROOT / chapter / "README.md").read_text(encoding="utf-8")


def test_links_in_the_readmes_and_docs_lead_to_files():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md")]
    assert len(pages) > 9
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_the_table_of_both_tensorflows_points_to_scripts_that_run_the_old_one():
    text = (ROOT / "docs/tensorflow1.md").read_text(encoding="utf-8")
    scripts = set(re.findall(r"\]\(\.\./([^)]+\.py)\)", text))
    assert len(scripts) > 5
    for script in scripts:
        assert "tf.compat.v1" in (ROOT / script).read_text(encoding="utf-8"), script
