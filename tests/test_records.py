"""What the course states of its results is what was recorded in docs/results/."""

import ast
import json
import re
from typing import Any

import pytest
from helpers import ROOT, load_script

import course_records

SCRIPTS = [script.name for script in load_script("course.py").find_scripts()]
OURS = [name for name in SCRIPTS if name not in course_records.UNRECORDED]
RECORDS = {name: record for name in SCRIPTS if (record := course_records.read_record(name))}

DECIMAL = re.compile(r"(?<![\w.:])(\d[\d,]*\.\d+(?:e[+-]?\d+)?)(?![\d]|\.\d)(\s?%)?")


def prose(text: str) -> str:
    """A text in one line, without the signs of comments."""
    return " ".join(re.sub(r"^\s*# ?", "", text, flags=re.MULTILINE).split())


def paragraph(script: str, label: str) -> str:
    """The paragraph of a script's docstring that begins with ``label``."""
    doc = ast.get_docstring(ast.parse((ROOT / script).read_text(encoding="utf-8")))
    (found,) = (part for part in doc.split("\n\n") if part.startswith(f"{label}:"))
    return prose(found)


def recorded(record: dict[str, Any]) -> list[float]:
    """Every value of a record that a text may state."""
    numbers: list[float] = []
    times = [record[name] for name in ("seconds", "train_seconds") if record.get(name)]
    for entry in (*record["metrics"].values(), *times):
        for value in entry.values():
            numbers += value if isinstance(value, list) else [value]
    return [abs(number) for number in numbers if number is not None]


def settings(script: str) -> set[float]:
    """The numbers that stand in a script's code: a text may state them, too."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {float(value) for value in constants if type(value) in (int, float)}


def is_one_of(stated: str, numbers: list[float]) -> bool:
    """Whether a decimal number is one of ``numbers``, rounded to as many digits as it has."""
    digits, _, power = stated.replace(",", "").partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    value = float(stated.replace(",", ""))
    return any(abs(number - value) <= 0.5001 * unit for number in numbers)


def wrong_figures(text: str, numbers: list[float], free: set[float], all_of_it: bool) -> list[str]:
    """The decimal numbers in ``text`` that are neither recorded nor free.

    Unless ``all_of_it``, only percentages from 1 % are looked at: the notes have formulas, too, and
    smaller percentages are differences.
    """
    wrong = []
    for match in DECIMAL.finditer(text):
        stated, percent = match.groups()
        value = float(stated.replace(",", ""))
        if not all_of_it and (not percent or value < 1):
            continue
        values = [100 * number for number in numbers] if percent else numbers
        if not is_one_of(stated, values) and (value / 100 if percent else value) not in free:
            wrong.append(match.group())
    return wrong


def test_the_recorded_chapters_have_records_of_the_code_as_it_is():
    stale = {name: why for name in OURS if (why := course_records.why_stale(name))}
    assert not stale


@pytest.mark.parametrize("script", RECORDS)
def test_what_a_script_says_you_should_see_was_recorded(script):
    numbers, free = recorded(RECORDS[script]), settings(script)
    assert not wrong_figures(paragraph(script, "You should see"), numbers, free, all_of_it=True)
    text = prose((ROOT / script).read_text(encoding="utf-8"))
    assert not wrong_figures(text, numbers, free, all_of_it=False)


@pytest.mark.parametrize("script", RECORDS)
def test_the_time_a_script_states_is_within_a_third_of_the_recorded(script):
    said = paragraph(script, "Time")
    found = re.search(r"(\d+(?:\.\d+)?) (s|seconds?|min|minutes?)\b", said)
    assert found, said
    stated = float(found[1]) * (60 if found[2].startswith("min") else 1)
    seconds = RECORDS[script]["seconds"]["mean"]
    assert abs(stated - seconds) <= max(seconds / 3, 2), f"{said} Recorded: {seconds:.0f} s"


@pytest.mark.parametrize("readme", course_records.READMES)
def test_tables_are_what_record_readme_writes(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert course_records.with_records(readme, text, SCRIPTS) == text


@pytest.mark.parametrize("chapter", course_records.CHAPTERS)
def test_percentages_in_a_chapter_s_readme_were_recorded(chapter):
    scripts = [name for name in RECORDS if name.startswith(f"{chapter}/")]
    files = sorted((course_records.RESULTS / chapter).rglob("*.json"))  # benchmarks' too
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    numbers = [number for record in records for number in recorded(record)]
    free = set().union(*map(settings, scripts))
    readmes = sorted((ROOT / chapter).rglob("README.md"))
    text = prose("\n".join(readme.read_text(encoding="utf-8") for readme in readmes))
    if scripts:
        assert not wrong_figures(text, numbers, free, all_of_it=False)


def test_wrong_figures_are_found():
    numbers = [0.98463, 4.77e-07, 1.46, 1234.56]
    text = "98.46 % and 98.5 % right, 4.8e-07 left, 1.46; TensorFlow 2.21.0; 1,234.6; rate 0.05"
    assert wrong_figures(text, numbers, {0.05}, all_of_it=True) == []
    text = "98.47 % right, 4.7e-07 left, 1.5, 1.47; 0.25 % by chance, 2.6 % lost, 0.05"
    found = wrong_figures(text, numbers, set(), all_of_it=True)
    assert found == ["98.47 %", "4.7e-07", "1.47", "0.25 %", "2.6 %", "0.05"]
    assert wrong_figures(text, numbers, set(), all_of_it=False) == ["98.47 %", "2.6 %"]
    assert prose("# a training that ends\n# at 98.4 %") == "a training that ends at 98.4 %"
