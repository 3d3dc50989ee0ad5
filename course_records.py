"""What the scripts gave when they were recorded, ``docs/results/<chapter>/<script>.json``, and the
tables of the READMEs that are written from it.

Scripts are named by their path in the project, such as ``"cnn/01_mnist_conv_layers.py"``.
"""

import ast
import hashlib
import importlib.metadata
import json
import math
import platform
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from utils.run import format_metric

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "docs" / "results"
CHAPTERS = ("first_try", "linear", "tensorboard_demos", "cnn", "rnn", "inception_v3")
CHAPTERS += ("captcha_multitask",)
UNRECORDED = {"inception_v3/direct_apply/02_predict_images.py"}  # needs all of Keras's weights
PARTS = ("direct_apply", "pool3_train", "slim_train")
FOLDERS = (*CHAPTERS, *(f"inception_v3/{part}" for part in PARTS))
READMES = ("README.md", "README.zh-CN.md", *(f"{folder}/README.md" for folder in FOLDERS))
HEADS = (["result", "time"], ["结果", "用时"])  # the last two columns of the tables
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end -->\n)", re.DOTALL)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
EVERYTHING = "*"  # of a module

# ---- the code that a script runs ------------------------------------------------------------


def code_of(script: str) -> dict[str, str]:
    """The files of the project that a script depends on, itself first: path to hash. They are
    what it imports, and the scripts beside it whose run folders it looks for by their name.

    The hash is of the syntax tree without docstrings, so notes, docstrings and layout may be
    mended and the record stays good. Of a module it covers what the script uses: a change of a
    function that is neither imported nor called by what is imported leaves the hash as it is.
    """
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    beside = sorted((ROOT / script).parent.glob("[0-9]*_*.py"))
    used = {path: {EVERYTHING} for path in [ROOT / script, *beside] if path.stem in strings}
    used = {ROOT / script: {EVERYTHING}} | used
    hashes: dict[Path, str] = {}
    waiting = [*used]
    while waiting:
        path = waiting.pop(0)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = _used(tree.body, used[path])
        hashes[path] = hashlib.sha256(repr(_syntax(tree)).encode()).hexdigest()[:16]
        for module, name in _imported(tree, path, (ROOT / script).parent):
            if name not in used.setdefault(module, set()):
                used[module].add(name)
                waiting.append(module)
    return {path.relative_to(ROOT).as_posix(): digest for path, digest in hashes.items()}


def _used(body: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """The statements of a module that matter to who imports ``names`` from it: those that define
    them or what they need, and those that define nothing."""
    if EVERYTHING in names:
        return body
    needed, kept = set(names), [False] * len(body)
    while True:
        for number, node in enumerate(body):
            defined = _defined(node)
            if not kept[number] and (not defined or defined & needed):
                kept[number] = True
                used = (part.id for part in ast.walk(node) if isinstance(part, ast.Name))
                if new := {*used} - needed:
                    needed |= new
                    break
        else:
            return [node for node, keep in zip(body, kept, strict=True) if keep]


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines; none for one that does something else."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    if isinstance(node, ast.Assign | ast.AnnAssign) and all(
        isinstance(part, ast.Name | ast.Tuple) for part in targets
    ):
        return {part.id for t in targets for part in ast.walk(t) if isinstance(part, ast.Name)}
    return set()


def _syntax(node: Any) -> Any:
    """A syntax tree as tuples and lists, without places and docstrings. What is empty is left
    out: Python's versions differ in their empty fields and empty pieces of f-strings."""
    if isinstance(node, list):
        return [_syntax(part) for part in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    parts = [(name, _syntax(part)) for name, part in fields.items() if part not in (None, [])]
    return type(node).__name__, parts


def _imported(tree: ast.Module, file: Path, folder: Path) -> list[tuple[Path, str]]:
    """The project's files that the code of ``file`` imports, anywhere in it, and what from them.
    Python looks in the script's ``folder`` first, then where the project is."""
    names: list[tuple[str, Sequence[Path]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, (folder, ROOT)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            places = (file.parents[node.level - 1],) if node.level else (folder, ROOT)
            start = f"{node.module}." if node.module else ""
            names += [(start + alias.name, places) for alias in node.names]
    imported = []
    for name, places in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):  # of utils.run.Run: utils, utils/run
            module = Path(*parts[:length])
            files = (module / "__init__.py", module.with_suffix(".py"))
            found = [place / file for place in places for file in files]
            rest = parts[length] if length < len(parts) else EVERYTHING
            imported += [(path, rest) for path in found if path.is_file()][:1]
    return imported


# ---- records --------------------------------------------------------------------------------


def record_path(script: str) -> Path:
    """Where the record of ``script`` is kept."""
    return RESULTS / Path(script).with_suffix(".json")


def read_record(script: str) -> dict[str, Any] | None:
    """The record of ``script``; None if it has none that can be read."""
    with suppress(OSError, ValueError):
        return json.loads(record_path(script).read_text(encoding="utf-8"))
    return None


def why_stale(script: str) -> str:
    """Why ``script`` should be recorded again; empty if its record is of the code as it is."""
    if (record := read_record(script)) is None:
        return "no record"
    now, then = code_of(script), record["code"]
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    return f"changed since {record['date']}: {', '.join(changed)}" if changed else ""


def wilson(share: float, count: int) -> list[float]:
    """The 95 % interval (Wilson's) of a probability, when ``share`` of ``count`` trials hit."""
    z = statistics.NormalDist().inv_cdf(0.975)
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return [(middle + sign * half) / (1 + z**2 / count) for sign in (-1, 1)]


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; None of a single value) and the values themselves."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "values": list(values)}


def make_record(
    results: Sequence[dict[str, Any]],
    seconds: Sequence[float],
    code: dict[str, str],
    machine: dict[str, Any],
) -> dict[str, Any]:
    """The record of a script's runs, one for each seed.

    Args:
        results: what each run left in its ``result.json``.
        seconds: how long each process took, importing TensorFlow included.
        code: ``code_of`` the script as it ran.
        machine: CPU, cores, GPUs and speed.
    """
    first = results[0]
    test_images = first["data"].get("test_images")
    metrics = {name: summarise([r["metrics"][name] for r in results]) for name in first["metrics"]}
    if test_images:
        for name, metric in metrics.items():
            if name.endswith("test_accuracy") or name == "whole_captcha_accuracy":
                metric["interval"] = wilson(metric["mean"], test_images)
    trained = first.get("train_seconds") is not None
    packages = ("tensorflow", "keras", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "script": first["script"],
        "date": date.today().isoformat(),
        "seeds": [result["seed"] for result in results],
        "metrics": metrics,
        "test_images": test_images,
        "parameters": first.get("parameters"),
        "weights": first.get("weights"),  # what a trained network began with
        "seconds": summarise([round(value, 2) for value in seconds]),
        "train_seconds": summarise([r["train_seconds"] for r in results]) if trained else None,
        "machine": machine,
        "versions": {"python": platform.python_version(), **versions},
        "code": code,
    }


def expected_seconds(record: dict[str, Any], machine: dict[str, Any]) -> float:
    """About how long the script takes on ``machine``. The training goes with the speed of the
    convolution. The rest, mostly imports, is not faster on a machine that has more cores."""
    ratio = record["machine"]["convolution_gflops"] / machine["convolution_gflops"]
    training = record["train_seconds"]["mean"] if record["train_seconds"] else 0
    return training * ratio + (record["seconds"]["mean"] - training) * max(ratio, 1)


# ---- what the READMEs say -------------------------------------------------------------------


def time_cell(seconds: float, chinese: bool = False) -> str:
    """A time as a table states it: ``36 s``, ``2 min``."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} {'秒' if chinese else 's'}"
    return f"{seconds / 60:.0f} {'分钟' if chinese else 'min'}"


def result_cell(record: dict[str, Any], chinese: bool = False) -> str:
    """The test accuracy with its spread over seeds and its interval; of a script without, the
    first two metrics."""
    metrics = record["metrics"]
    accuracy = metrics.get("test_accuracy", metrics.get("whole_captcha_accuracy"))
    if accuracy is None:
        shown = [_metric(name, metrics[name]["mean"], chinese) for name in [*metrics][:2]]
        return ("，" if chinese else ", ").join(shown)
    spread = "" if accuracy["sd"] is None else f" ± {100 * accuracy['sd']:.2f}"
    low, high = (f"{100 * end:.2f}" for end in accuracy.get("interval", (0, 1)))
    interval = f"（{low} 至 {high}）" if chinese else f" ({low} to {high})"
    return f"**{100 * accuracy['mean']:.2f} %**{spread}{interval if 'interval' in accuracy else ''}"


def _metric(name: str, value: float, chinese: bool) -> str:
    """A metric in a table; in Chinese with its name as it stands in the file."""
    words, _, number = format_metric(name, value).rpartition(" ")
    digits, e, power = number.replace("%", " %").partition("e")
    power = f" × 10{str(int(power)).translate(SUPERSCRIPTS)}" if e else ""
    return f"{f'`{name}`' if chinese else words} {digits}{power}"


def measured_on(records: Sequence[dict[str, Any]], chinese: bool = False) -> str:
    """Where and with what the records were made, and how long all the scripts took."""
    last = max(records, key=lambda record: record["date"])
    machine, versions = last["machine"], last["versions"]
    minutes = sum(record["seconds"]["mean"] for record in records) / 60
    speed = statistics.median(record["machine"]["convolution_gflops"] for record in records)
    gpus = ", ".join(machine["gpus"])
    libraries = f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}"
    if chinese:
        return (
            f"测量环境：{machine['cpu']} 的 {machine['cores']} 个核心（{gpus or '无 GPU'}），"
            f"`course.py check` 测得卷积速度 {speed:.0f} GFLOP/s；"
            f"{libraries.replace(', ', '，')}，Python {versions['python']}。"
            f"有记录的脚本各运行一次，共 {minutes:.0f} 分钟。\n"
        )
    return (
        f"Measured on {machine['cores']} cores of an {machine['cpu']} ({gpus or 'no GPU'}) that "
        f"does {speed:.0f} GFLOP/s\nin the convolution of `course.py check`, with {libraries} and "
        f"Python {versions['python']}.\nRun once each, the recorded scripts take "
        f"{minutes:.0f} minutes.\n"
    )


def with_records(readme: str, text: str, scripts: Sequence[str]) -> str:
    """The ``text`` of a README with the result and time cells, and the paragraph between
    ``<!-- measured -->`` and ``<!-- end -->``, written from the records of ``scripts``.

    A row belongs to the script whose path, seen from the README, or whose name is in it. Rows
    without a record stay as they are.
    """
    chinese = "zh" in readme
    records = {script: record for script in scripts if (record := read_record(script))}
    lines = text.splitlines(keepends=True)
    in_table = False
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        in_table = bool(cells) and (in_table or cells[-2:] in HEADS)
        names = [name for name in records if in_table and _in_row(readme, name, line)]
        if names:
            record = records[names[0]]
            seconds = record["seconds"]["mean"]
            cells[-2:] = result_cell(record, chinese), time_cell(seconds, chinese)
            lines[number] = f"| {' | '.join(cells)} |\n"
    text = "".join(lines)
    return MEASURED.sub(measured_on([*records.values()], chinese), text) if records else text


def _in_row(readme: str, script: str, line: str) -> bool:
    folder = Path(readme).parent
    path = Path(script)
    return path.is_relative_to(folder) and path.relative_to(folder).as_posix() in line


def rewrite_readmes(scripts: Sequence[str]) -> list[str]:
    """Write the records into the READMEs; those that changed."""
    changed = []
    for readme in READMES:
        path = ROOT / readme
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            new = with_records(readme, text, scripts)
            if new != text:
                path.write_text(new, encoding="utf-8")
                changed.append(readme)
    return changed
