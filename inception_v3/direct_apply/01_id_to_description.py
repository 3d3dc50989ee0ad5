"""From an output's number to words
================================

You learn: what the numbers of a classifier's outputs stand for, and why two InceptionV3 of the same
classes count them in two orders; to read a protocol buffer's text format.

Run::

    python inception_v3/direct_apply/01_id_to_description.py

You should see: 1,000 entries, with the giant panda at node 169 of Google's frozen graph and at
388 of Keras's network.

The list is written to ``models/inception_v3/id_desc.json``, where ``02_predict_images.py`` finds
it, and to ``id_desc.txt`` for reading. The two label files came with Google's graph of 2015. They
are looked for on this machine, then downloaded (89 MB), but not with ``--quick``. Where they are
missing, six of their entries stand in.

Time: 1 s, as TensorFlow is not needed.
"""

from collections import Counter
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from models.inception_v3 import CACHE, LABEL_MAP, SYNSETS, find_file
from utils.run import CourseParser, Run, readable, write_json, written_whole

CLASSES, OUTPUTS = 1000, 1008  # of ImageNet's challenge, of Google's graph
SHOWN = (105, 169, 388, 429, 545)  # nodes

parser = CourseParser(__doc__)
parser.add_argument("--label-map", type=Path, metavar="FILE", help=f"{LABEL_MAP}, or one like it")
parser.add_argument("--synsets", type=Path, metavar="FILE", help=f"{SYNSETS}, or one like it")
run = Run(parser, __file__)

# %%
# Outputs have no names
# ---------------------
# A classifier ends in a vector of probabilities. Which class is number 169 was decided when the
# training data were put in order. It is not in the network, so a list has to come with it.
#
# ImageNet's classes are *synsets* of WordNet: sets of words that mean the same thing, such as
# "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca". Each has an identifier,
# ``n02510455``: n for noun, and its place in a version of WordNet. Words are not unique. There are
# two cranes among the 1,000, a bird and a machine. So lists are joined by the identifier.
#
# - **Google's graph** has 1,008 outputs, called *nodes*. Nodes 1 to 1000 are the classes in the
#   order of the ImageNet challenge of 2012. Node 0 and the last seven stand for nothing.
# - **Keras's network** has 1,000 outputs, in the order of the sorted identifiers, from 0.
#
# If you read Keras's outputs with Google's list, nothing fails. You get words for each answer, and
# they are wrong.
#
# The synset file has a line for each of ImageNet's 21,842 synsets: identifier, tab, words. A few
# of both files stand here, for a look at the formats without the download.

EXCERPT = {
    1: "n02119789\tkit fox, Vulpes macrotis",
    105: "n02090622\tborzoi, Russian wolfhound",
    169: "n02510455\tgiant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca",
    388: "n01532829\thouse finch, linnet, Carpodacus mexicanus",
    429: "n02012849\tcrane",
    545: "n03126707\tcrane",
}
ENTRY = 'entry {\n  target_class: %d\n  target_class_string: "%s"\n}\n'

files = [run.args.label_map or find_file(LABEL_MAP, download=not run.args.quick)]
if files[0]:
    files.append(run.args.synsets or find_file(SYNSETS, download=not run.args.quick))
stand_in = None in files
if stand_in:
    print(f"*** STAND-IN: {len(EXCERPT)} entries take the place of the label files ***")
    label_map = "".join(ENTRY % (node, line.split("\t")[0]) for node, line in EXCERPT.items())
    synsets = "\n".join(EXCERPT.values())
else:
    try:
        label_map, synsets = (file.read_text(encoding="utf-8-sig") for file in files)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"can't read {' or '.join(map(str, files))}: {error}")

# %%
# A protocol buffer as text
# -------------------------
# The label map is a protocol buffer, TensorFlow's own format for structured data, as text. Its
# schema says which fields it has. Usually ``protoc`` compiles the schema from a ``.proto`` file;
# here it is put together in Python. ``text_format`` then reads the text, however it is laid out,
# and names the line of a mistake. (The program of 2015 looked for lines that begin with two blanks.
# In a file with other blanks it found nothing, without a word.)

schema = descriptor_pb2.FileDescriptorProto(name="label_map.proto", package="label_map")
label_map_type = schema.message_type.add(name="LabelMap")
label_map_type.field.add(name="entry", number=1, type=11, label=3, type_name=".label_map.Entry")
entry_type = schema.message_type.add(name="Entry")  # 11: a message, 3: repeated
entry_type.field.add(name="target_class", number=1, type=5, label=1)  # int32, 1: at most once
entry_type.field.add(name="target_class_string", number=2, type=9, label=1)  # string
pool = descriptor_pool.DescriptorPool()
pool.Add(schema)
LabelMap = message_factory.GetMessageClass(pool.FindMessageTypeByName("label_map.LabelMap"))
try:
    entries = text_format.Parse(label_map, LabelMap()).entry
except text_format.ParseError as error:
    parser.error(f"{files[0]}, line {error}")

# %%
# The two lists joined
# --------------------
# A node or a synset that occurs twice, or a synset without words, means that a file is damaged.
# Nothing is written then: a wrong list would never be noticed.

words = dict(line.split("\t", 1) for line in synsets.splitlines() if "\t" in line)
in_order = sorted(entries, key=lambda entry: entry.target_class)
nodes = {entry.target_class: entry.target_class_string for entry in in_order}
counts = Counter(entry.target_class for entry in entries)
counts.update(entry.target_class_string for entry in entries)
faults = [f"{name} occurs {count} times" for name, count in counts.items() if count > 1]
faults += [f"{s} has no words in the synset file" for s in nodes.values() if s not in words]
if faults or not nodes:
    more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
    parser.error(f"{files[0]}: {'; '.join(faults[:5]) or 'it has no entries'}{more}")

whole = len(nodes) == CLASSES  # only then is a place among the sorted ones Keras's index
keras_index = {synset: i for i, synset in enumerate(sorted(nodes.values()))} if whole else {}
listed = {
    str(node): {
        "synset": synset,
        "description": words[synset],
        "keras_index": keras_index.get(synset),
    }
    for node, synset in nodes.items()
}
print(f"{'node':>5}  {'Keras':>5}  synset     words")
for node in [str(node) for node in SHOWN if node in nodes] or list(listed)[:5]:
    synset, description, index = listed[node].values()
    print(f"{node:>5}  {'?' if index is None else index:>5}  {synset}  {description}")
if whole:
    unused = sorted({*range(OUTPUTS)} - {*nodes})
    print(f"Of the {OUTPUTS:,} nodes these stand for nothing: {', '.join(map(str, unused))}")

names = ("id_desc.json", "id_desc.txt")
table, text = (run.path(name) if stand_in else CACHE / name for name in names)
try:
    write_json(table, listed)
    with written_whole(text) as temporary:
        lines = ["\t".join(map(str, (node, *entry.values()))) for node, entry in listed.items()]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
except OSError as error:
    parser.error(f"can't write to {CACHE}: {error.strerror}")
print(f"Written: {readable(table)}, {readable(text)}")

source = "an excerpt" if stand_in else ", ".join(map(readable, files))
run.finish({"entries": len(listed)}, data={"source": source, "stand_in": stand_in})
