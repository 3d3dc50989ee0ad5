"""From an output's number to words
================================

You learn: what the numbers of a classifier's outputs stand for, why two InceptionV3 of the same
classes count them in two orders, and how to read a text file so that a bad line is found by its
number.

Run::

    python inception_v3/direct_apply/01_id_to_description.py

You should see: 1,000 entries, with the giant panda at node 169 of Google's frozen graph and at
388 of Keras's network. They are written to ``models/inception_v3/id_desc.json``, from which
``02_predict_images.py --graph-def`` takes the words, and to ``id_desc.txt`` for reading.

The two label files came with Google's graph of 2015. They are looked for on this machine, then
fetched (``python models/inception_v3.py --help`` tells where). With ``--quick`` nothing is
fetched: where they are missing, eight entries in the same format stand in.

Time: 1 second.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.inception_v3 import CACHE, LABEL_MAP, SYNSETS, find_file
from utils.run import CourseParser, Run, make_parser, readable, write_json, written_whole

SHOWN = 20  # bad lines that are printed
CLASSES, OUTPUTS = 1000, 1008  # of ImageNet's challenge, of Google's graph


def flags() -> CourseParser:
    """The flags of this script."""
    parser = make_parser(__doc__)
    add, file = parser.add_argument, {"type": Path, "metavar": "FILE"}
    add("--label-map", **file, help=f"{LABEL_MAP}, or one in its format")
    add("--synsets", **file, help=f"{SYNSETS}, or one in its format")
    add("--out", type=Path, metavar="DIR", default=CACHE, quick=CACHE / "quick", help="for id_desc")
    add("--skip-bad", action="store_true", help="write the good entries although lines are bad")
    return parser


# %%
# Outputs have no names
# ---------------------
# A classifier ends in a vector of probabilities. Which class the number 169 is, was decided when
# the training data were put in order, and is not in the network. So a list must come with it.
#
# ImageNet's classes are *synsets* of WordNet: sets of words that mean the same thing, such as
# "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca". Each has an identifier,
# ``n02510455``: n for noun, and the place in a version of WordNet. Words are not unique (there
# are two cranes among the 1,000, a bird and a machine), identifiers are. So whatever joins two
# lists has to join them by the identifier, never by the words and never by the position:
#
# - **Google's graph** has 1,008 outputs, *nodes*. Node 1 to 1000 are the classes in the order of
#   the ImageNet challenge of 2012, in which 1 is the kit fox; 0 and 1001 to 1007 stand for
#   nothing. Node 169 is the giant panda.
# - **Keras's network** has 1,000 outputs, in the alphabetical order of the identifiers, counted
#   from 0. There the giant panda is 388, and 169 is the borzoi, a dog.
#
# Reading Keras's outputs with Google's list does not fail. It gives an answer that looks like
# any other, and is wrong.
#
# Two files in two formats
# ------------------------
# The label map is a protocol buffer as text, an entry for each class::
#
#     entry {
#       target_class: 169
#       target_class_string: "n02510455"
#     }
#
# The program that came with it in 2015 looked for lines that begin with two blanks and
# ``target_class:``, took all but the last two characters of what follows the quotation mark, and
# paired each string with the last number seen: with other blanks it finds nothing, with a
# line lost it pairs wrongly, and says so in neither case. Here the text is cut into tokens
# (words, numbers, strings, marks) with the number of their line, and the grammar is checked; how
# it is laid out plays no part.
#
# The synset file has a line for each of ImageNet's 21,842 synsets: identifier, tab, words.

TOKEN = re.compile(r'#.*|"[^"]*"|\w+|\S')  # a comment, a string, a word or number, a mark
FIELDS = {"target_class": r"\d{1,9}", "target_class_string": r'"n\d{8}"'}
WANTED = {
    "target_class": "a number from 0",
    "target_class_string": 'an identifier such as "n02510455"',
}


class Fault(NamedTuple):
    """What is wrong with a line of a file."""

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.what}"


class Entry(NamedTuple):
    """An entry of the label map, and the number of the line in which it begins."""

    line: int
    node: int
    synset: str


def read_lines(path: Path, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SystemExit(f"can't read {path}: {error.strerror}") from error
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            faults.append(Fault(path, number, f"is not UTF-8 ({error.reason})"))


def read_label_map(path: Path, faults: list[Fault]) -> list[Entry]:
    """The good entries of a label map; what is wrong with the others is added to ``faults``.

    The tokens are cut in front of each ``entry``, so that a fault in one leaves the next whole.
    """
    tokens = [
        (number, token)
        for number, line in read_lines(path, faults)
        for token in TOKEN.findall(line)
        if not token.startswith("#")
    ]
    starts = [i for i, (_, token) in enumerate(tokens) if token == "entry"]
    if tokens and starts[:1] != [0]:
        faults.append(Fault(path, tokens[0][0], f"expected entry {{, found {tokens[0][1]}"))
    entries = []
    for start, end in pairwise([*starts, len(tokens)]):
        entry = read_entry(tokens[start:end])
        if isinstance(entry, Entry):
            entries.append(entry)
        else:
            faults.append(Fault(path, *entry))
    return entries


def read_entry(tokens: Sequence[tuple[int, str]]) -> Entry | tuple[int, str]:
    """The entry that these tokens make, each with its line's number; else the line that is wrong
    and what is wrong with it."""
    first, words = tokens[0][0], [token for _, token in tokens]
    if words[1:2] != ["{"]:
        return first, "expected { after entry"
    if "}" not in words:
        return first, "the entry that begins here has no end"
    end = words.index("}")
    if words[end + 1 :]:
        return tokens[end + 1][0], f"expected entry {{, found {words[end + 1]}"
    values = {}
    for i in range(2, end, 3):
        line, name = tokens[i]
        colon, value = ([*words[i + 1 : end], "nothing", "nothing"])[:2]
        if name not in FIELDS or colon != ":":
            return line, f"expected {': or '.join(FIELDS)}:, found {name}"
        if name in values:
            return line, f"a second {name} in one entry"
        if not re.fullmatch(FIELDS[name], value):
            return line, f"{name} is {value}, not {WANTED[name]}"
        values[name] = value.strip('"')
    if lacking := [name for name in FIELDS if name not in values]:
        return first, f"the entry that begins here has no {lacking[0]}"
    return Entry(first, int(values["target_class"]), values["target_class_string"])


def read_synsets(path: Path, faults: list[Fault]) -> dict[str, str]:
    """The words of each synset in a synset file; what is wrong is added to ``faults``."""
    words = {}
    for number, line in read_lines(path, faults):
        synset, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not re.fullmatch(r"n\d{8}", synset) or not text.strip():
            fault = f"expected an identifier, a tab and words, found {line[:40]!r}"
            faults.append(Fault(path, number, fault))
        elif synset in words:
            faults.append(Fault(path, number, f"a second line for {synset}"))
        else:
            words[synset] = text.strip()
    return words


# %%
# Joined by the identifier
# ------------------------
# What can be wrong although each line is right: a node given twice, a synset given twice, a synset
# without words. Keras's index needs no third file: it is a synset's place among all of them,
# sorted.


class Description(NamedTuple):
    """What an output of Google's graph stands for."""

    synset: str
    description: str
    keras_index: int


def describe_nodes(label_map: Path, synsets: Path, faults: list[Fault]) -> dict[int, Description]:
    """What each node stands for, in the order of the nodes, with the faults of both files."""
    words = read_synsets(synsets, faults)
    entries: dict[int, Entry] = {}
    nodes: dict[str, int] = {}
    for entry in read_label_map(label_map, faults):
        fault = None
        if entry.node in entries:
            fault = f"node {entry.node} is given a second time"
        elif entry.synset in nodes:
            fault = f"{entry.synset} is given a second time"
        elif entry.synset not in words:
            fault = f"{entry.synset} has no words in {synsets.name}"
        if fault:
            faults.append(Fault(label_map, entry.line, fault))
        else:
            entries[entry.node] = entry
            nodes[entry.synset] = entry.node
    places = {synset: place for place, synset in enumerate(sorted(nodes))}
    return {
        node: Description(synset, words[synset], places[synset])
        for node, (_, _, synset) in sorted(entries.items())
    }


# %%
# Bad lines
# ---------
# With a bad line nothing is written: a list that lacks an entry would only be noticed when that
# class comes up. All bad lines are named, not the first alone, so that one look at the file is
# enough. ``--skip-bad`` takes what is good.


def report_faults(faults: Sequence[Fault], skip: bool) -> None:
    """Name the bad lines. Raises SystemExit unless they may be skipped."""
    lines = [str(fault) for fault in sorted(faults)[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"… and {len(faults) - SHOWN:,} more")
    if faults and not skip:
        raise SystemExit(
            "\n".join([*lines, f"{len(faults):,} bad lines: nothing is written."])
            + " --skip-bad writes the good entries."
        )
    if faults:
        print("\n".join([*lines, f"{len(faults):,} bad lines are skipped."]))


# %%
# The files
# ---------
# JSON for programs, with the node as a string, since JSON's keys are strings; tabs for people and
# spreadsheets. Both are written to a temporary name and renamed.

EXCERPT = {  # some of Google's nodes, for a look at the format without the files
    1: ("n02119789", "kit fox, Vulpes macrotis"),
    105: ("n02090622", "borzoi, Russian wolfhound"),
    169: ("n02510455", "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca"),
    357: ("n11939491", "daisy"),
    388: ("n01532829", "house finch, linnet, Carpodacus mexicanus"),
    429: ("n02012849", "crane"),
    449: ("n01440764", "tench, Tinca tinca"),
    545: ("n03126707", "crane"),
}


def write_excerpt(folder: Path) -> tuple[Path, Path]:
    """Write some entries in the format of the two label files; their paths."""
    label_map, synsets = folder / LABEL_MAP, folder / SYNSETS
    with written_whole(label_map) as temporary:
        entries = (
            f'entry {{\n  target_class: {node}\n  target_class_string: "{synset}"\n}}\n'
            for node, (synset, _) in EXCERPT.items()
        )
        temporary.write_text("# A few entries of the label map.\n" + "".join(entries), "utf-8")
    with written_whole(synsets) as temporary:
        lines = (f"{synset}\t{words}\n" for synset, words in sorted(EXCERPT.values()))
        temporary.write_text("".join(lines), "utf-8")
    return label_map, synsets


def write_descriptions(folder: Path, found: dict[int, Description]) -> tuple[Path, Path]:
    """Write ``id_desc.json`` and ``id_desc.txt``; their paths."""
    listed = {
        str(node): {"synset": about.synset, "description": about.description}
        for node, about in found.items()
    }
    write_json(folder / "id_desc.json", listed)
    with written_whole(folder / "id_desc.txt") as temporary:
        lines = (f"{node}\t{a.synset}\t{a.description}\n" for node, a in found.items())
        temporary.write_text("".join(lines), "utf-8")
    return folder / "id_desc.json", folder / "id_desc.txt"


# %%
# All together
# ------------


def find_label_files(run: Run) -> tuple[Path, Path, bool]:
    """Label map and synset file, and whether they are the stand-in."""
    label_map, synsets = run.args.label_map, run.args.synsets
    label_map_named = label_map is not None
    label_map = label_map or find_file(LABEL_MAP, download=not run.args.quick)
    if label_map is not None:
        synsets = synsets or find_file(SYNSETS, download=not run.args.quick)
        if synsets is not None:
            return label_map, synsets, False
    if not run.args.quick or label_map_named or synsets is not None:
        raise SystemExit(1)  # find_file has said what is missing and what to do
    print(f"*** STAND-IN: {len(EXCERPT)} entries in the format of the label files ***")
    return *write_excerpt(run.path("excerpt")), True


def show_nodes(found: dict[int, Description]) -> None:
    """A table of some nodes, and which outputs stand for nothing."""
    whole = len(found) == CLASSES
    place = "Keras's index" if whole else "place, sorted"
    table = Table("node", "synset", place, "words", title="Some of the nodes")
    for node in [node for node in EXCERPT if node in found] or list(found)[:5]:
        synset, words, place = found[node]
        table.add_row(str(node), synset, str(place), escape(words))
    Console().print(table)
    if whole:
        unused = sorted(set(range(OUTPUTS)) - set(found))
        print(f"Of the {OUTPUTS:,} outputs these stand for nothing: {', '.join(map(str, unused))}")


def main() -> None:
    run = Run(flags(), __file__)
    label_map, synsets, stand_in = find_label_files(run)
    faults: list[Fault] = []
    found = describe_nodes(label_map, synsets, faults)
    report_faults(faults, run.args.skip_bad)
    if not found:
        raise SystemExit(f"{label_map} has no entries: it is empty, or another kind of file.")
    show_nodes(found)
    try:
        for path in write_descriptions(run.args.out, found):
            print(f"Written: {readable(path)}")
    except OSError as error:
        raise SystemExit(f"can't write to {run.args.out}: {error.strerror}") from error
    run.finish(
        {"entries": len(found), "bad_lines": len(faults)},
        data={"source": f"{readable(label_map)}, {readable(synsets)}", "stand_in": stand_in},
    )


if __name__ == "__main__":
    main()
