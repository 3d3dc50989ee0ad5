"""Hello, TensorFlow
=================

You learn: constants and variables, graph and session. Each idea stands here three times: as
TensorFlow 2 computes it at once, as TensorFlow 1 built a graph and ran it in a session, and as
``tf.function`` joins the two.

Run::

    python first_try/01_hello_world.py
    python first_try/01_hello_world.py --check

You should see: the product of two matrices, [[12]], once as a tensor and once as its value; a
counter that goes from 1 to 5, with both ways giving the same. ``--check`` reports on your
machine instead: Python, TensorFlow, CPU, GPU and data sources, and what to do about each
problem.

Time: 6 s on two CPU cores, all but a tenth of a second spent importing TensorFlow.
"""

# %%
# Is this machine ready?
# ----------------------
# This cell does the work of ``--check``, before anything is imported that may be missing. The
# lesson begins with the next cell.

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pinned_versions() -> dict[str, str]:
    """What requirements.txt asks for on this Python: package to version."""
    pins = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        requirement, _, condition = line.partition(";")
        name, equals, version = requirement.strip().partition("==")
        older = sys.version_info < (3, 12)
        if equals and ("<" in condition) <= older and (">=" in condition) <= (not older):
            pins[name] = version
    return pins


def cpu_features() -> set[str] | None:
    """Which of AVX, AVX2, FMA and AVX-512 the CPU has; None where they don't apply (ARM) or
    can't be asked for."""
    wanted = {"avx", "avx2", "fma", "avx512f"}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if sys.platform == "linux":
        return wanted & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if sys.platform == "win32":
        import ctypes

        numbers = {39: "avx", 40: "avx2", 41: "avx512f"}  # PF_AVX_INSTRUCTIONS_AVAILABLE, …
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return {name for number, name in numbers.items() if present(number)}
    return None


def reachable(url: str) -> str:
    """Try to reach a server, for 5 s at most: "reached", or why not."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            return "reached"
    except urllib.error.HTTPError as error:  # it answered, so it can be reached
        return "reached" if error.code < 500 else f"answers {error.code}"
    except (urllib.error.URLError, OSError) as error:
        return f"not reached: {getattr(error, 'reason', error)}"


def check_machine() -> int:
    """Print a line for each thing the course needs, and what to do if it is not right.

    Returns:
        0 when the course can run, 1 when it can't.
    """
    problems = 0

    def report(thing: str, finding: str, advice: str = "", problem: bool = False) -> None:
        nonlocal problems
        problems += problem
        print(f"[{'FAIL' if problem else 'note' if advice else 'ok'}]\t{thing}: {finding}")
        if advice:
            print(f"\t-> {advice}")

    def command(*words: str | Path) -> str:
        return subprocess.list2cmdline([sys.executable, *map(str, words)])

    install = command("-m", "pip", "install", "-r", ROOT / "requirements.txt")

    good = (3, 11) <= sys.version_info[:2] <= (3, 13) and sys.maxsize > 2**32
    advice = "" if good else "install a 64-bit Python 3.11, 3.12 or 3.13: TensorFlow needs it"
    version = f"{platform.python_version()}, {platform.machine()}, {sys.executable}"
    report("Python", version, advice, problem=not good)
    in_venv = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    advice = "" if in_venv else "is this the right Python? `make course` puts the course's in .venv"
    report("virtual environment", sys.prefix if in_venv else "none in use", advice)

    missing = []
    for package, pin in {**pinned_versions(), "tensorflow-course": ""}.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
        else:
            fits = pin in ("", version)
            report(package, version, "" if fits else f"tested with {pin}; {install}")
    if missing:  # without tensorflow-course scripts stop at "No module named 'utils'"
        report("not installed", ", ".join(missing), install, problem=True)

    features = cpu_features()
    if features is not None:
        advice = "" if "avx" in features else "TensorFlow's packages need AVX: use another machine"
        report("CPU", " ".join(sorted(features)) or "no AVX", advice, problem=bool(advice))

    # In a process of its own, since a CPU without AVX or a broken library kills the process.
    code = (
        "import json, tensorflow as tf; gpus = tf.config.list_physical_devices('GPU'); "
        "print(json.dumps([tf.config.experimental.get_device_details(gpu)"
        ".get('device_name', gpu.name) for gpu in gpus]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, errors="replace"
    )
    if done.returncode == 0:
        report("import tensorflow", "works")
        gpus = json.loads(done.stdout.splitlines()[-1])
        advice = ""
        if not gpus and shutil.which("nvidia-smi"):  # an NVIDIA driver is here
            advice = (
                "TensorFlow for Windows has no GPU support: run the course in WSL2"
                if sys.platform == "win32"
                else command("-m", "pip", "install", "tensorflow[and-cuda]")
            )
        report("GPU", ", ".join(gpus) or "none; everything runs on the CPU", advice)
    elif "tensorflow" not in missing:
        crashed = done.returncode in (-4, 0xC000001D)  # SIGILL, and what Windows calls it
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        advice = "the CPU lacks an instruction TensorFlow needs" if crashed else install
        report("import tensorflow", f"fails: {last}", advice, problem=True)

    if not missing:
        from data.mnist import CACHE, FILES, MIRRORS

        named = os.environ.get("COURSE_DATA")
        folders = [Path(named).expanduser() / "mnist"] if named else []
        whole = [
            folder
            for folder in (*folders, CACHE)
            if all((folder / name).is_file() for name in FILES)
        ]
        advice = "" if whole else f"{command(ROOT / 'data' / 'mnist.py')} fetches it"
        report("MNIST", f"in {whole[0]}" if whole else "not here yet", advice)
        sources = [mirror + "t10k-labels-idx1-ubyte.gz" for mirror in MIRRORS]
        if os.environ.get("COURSE_OFFLINE", "") not in ("", "0"):
            report("downloads", "switched off by COURSE_OFFLINE", "unset it to allow them")
            sources = []
        with ThreadPoolExecutor() as pool:
            for url, answer in zip(sources, pool.map(reachable, sources), strict=True):
                advice = "" if answer == "reached" else "one source is enough; see the README"
                report(url.split("/")[2], answer, advice)

    print(f"\n{f'{problems} to mend, marked FAIL.' if problems else 'The course can run.'}")
    return min(problems, 1)


if "--check" in sys.argv:
    sys.exit(check_machine())

# %%
# What TensorFlow prints at import
# --------------------------------
# The next line prints about ten lines to the error stream, none of which is an error. Each
# begins with a severity (I information, W warning, E error), the time in seconds since 1970,
# the thread, and the place in TensorFlow's source:
#
# ``WARNING: All log messages before absl::InitializeLog() is called are written to STDERR``
#     Said of the logging itself: it starts before it is set up. It is also why
#     ``TF_CPP_MIN_LOG_LEVEL``, which used to silence these lines, no longer does.
# ``port.cc … oneDNN custom operations are on``
#     Intel's library for matrix products and convolutions is in use, on AMD's CPUs too. It adds
#     numbers in another order, so last digits may differ from another machine's. Keep it:
#     training is more than twice as fast with it.
# ``cudart_stub.cc … Could not find cuda drivers on your machine, GPU will not be used``
#     No NVIDIA driver. With no NVIDIA GPU, this is as it should be.
# ``cpu_feature_guard.cc … This TensorFlow binary is optimized to use available CPU instructions``
#     The CPU knows more instructions (AVX2, FMA, …) than TensorFlow was compiled for
#     everywhere. Where it counts, the right ones are chosen while the program runs.
# ``cuda_platform.cc … failed call to cuInit``
#     Marked E and still no error: printed at the first operation, when TensorFlow looks for a
#     GPU once more and finds no driver.
#
# ``mlir_graph_optimization_pass.cc … MLIR V1 optimization pass is not enabled``
#     Printed by the first session of TensorFlow 1's kind: an optional compiler step is left out.
#
# Some lines come twice, since two libraries inside TensorFlow each print them.

import numpy as np
import tensorflow as tf

from utils.run import Run, make_parser
from utils.summary import write_graph

parser = make_parser(__doc__)
parser.add_argument("--check", action="store_true", help="report on this machine, and stop")
run = Run(parser, __file__)
print(f"Hello from TensorFlow {tf.__version__}")

# %%
# Constants and a product, the TensorFlow 2 way
# ---------------------------------------------
# Operations compute at once ("eagerly"). A tensor has a shape, a type and a value, and
# ``numpy()`` gives the value as an array.

row = tf.constant([[3.0, 3.0]])  # [1, 2]
column = tf.constant([[2.0], [2.0]])  # [2, 1]
product = tf.matmul(row, column)  # [1, 1]
print("\nEagerly, the product is a tensor that has a value:")
print(f"  {product}")
print(f"  its value: {product.numpy()}")

# %%
# The same, the TensorFlow 1 way
# ------------------------------
# In TensorFlow 1 a program had two halves. The first, the *client*, only described the
# computation: each call added a node (an *operation*) to a graph, and a tensor was the name of
# an edge, ``MatMul:0`` being output 0 of the operation ``MatMul``. The second handed the graph
# to the *execution layer*: a session placed it on devices and ran the part that was asked for.
# So printing the product shows no number, and only ``session.run`` does.

graph = tf.Graph()
with graph.as_default():
    row_v1 = tf.constant([[3.0, 3.0]], name="row")
    column_v1 = tf.constant([[2.0], [2.0]], name="column")
    product_v1 = tf.matmul(row_v1, column_v1, name="product")
    with tf.compat.v1.Session() as session:
        product_value = session.run(product_v1)

print("\nIn a graph, the product is the name of an edge, with no value yet:")
print(f"  {product_v1}")
print(f"  session.run gives its value: {product_value}")
np.testing.assert_array_equal(product_value, product.numpy())

# %%
# Which graph does an operation belong to?
# ----------------------------------------
# To the one that was the default when it was made, and it can't be used in another. TensorFlow
# 1 had one default graph from the start, which grew with every cell a reader ran again. Here
# each graph is made by name and used in a ``with`` block, so nothing leaks.

with tf.Graph().as_default() as other_graph:
    stranger = tf.constant([[1.0], [1.0]], name="stranger")
print(f"\nThe product belongs to our graph: {product_v1.graph is graph}")
print(f"The stranger belongs to our graph: {stranger.graph is graph}")
try:
    with graph.as_default():
        tf.matmul(row_v1, stranger)
except ValueError as error:
    print(f"So they can't be multiplied: {str(error).splitlines()[0][:90]}")

# %%
# A variable: a counter, both ways
# --------------------------------
# A constant never changes; a variable keeps its value from step to step, and is what training
# changes. Eagerly, ``assign_add`` changes it there and then.

counter = tf.Variable(0, name="counter")
counts = [int(counter.assign_add(1)) for _ in range(5)]
print(f"\nCounted eagerly:      {counts}")

# %%
# In a graph, ``assign_add`` is an operation like another: it does nothing until it is run, and
# adds one each time it is. Nor does the variable exist before its initialiser has run, which
# was the most common first mistake. Its value lives in the session, and dies with it.

counter_graph = tf.Graph()
with counter_graph.as_default():
    counter_v1 = tf.compat.v1.get_variable("counter", initializer=0)
    count_up = tf.compat.v1.assign_add(counter_v1, 1)
    initialise = tf.compat.v1.global_variables_initializer()
    with tf.compat.v1.Session() as session:
        missing = session.run(tf.compat.v1.report_uninitialized_variables())  # [b"counter"]
        session.run(initialise)
        counts_v1 = [int(session.run(count_up)) for _ in range(5)]
print(f"Without a value until its initialiser ran: {missing[0].decode()}")
print(f"Counted in a session: {counts_v1}")

# %%
# The bridge: tf.function
# -----------------------
# ``tf.function`` builds the graph from ordinary Python code, at the first call, and runs it on
# every call: no session, no initialiser, no placeholder, but the speed of a graph. Python's own
# ``print`` runs only while the graph is built, ``tf.print`` is an operation and runs each time.

counter = tf.Variable(0, name="counter")


@tf.function
def count_up_by_one() -> tf.Tensor:
    """Add one to ``counter``; its new value."""
    print("(Python is reading count_up_by_one to build its graph)")
    return counter.assign_add(1)


counts_function = [int(count_up_by_one()) for _ in range(5)]
print(f"Counted by tf.function: {counts_function}")
assert counts == counts_v1 == counts_function == [1, 2, 3, 4, 5]

built = count_up_by_one.get_concrete_function()
print(
    f"The operations of its graph: {[operation.type for operation in built.graph.get_operations()]}"
)

# %%
# See both graphs in TensorBoard
# ------------------------------
# Type the command that is printed last and open the Graphs tab; the run is chosen at the left.

for name, drawn in {"product_tf1": graph, "counter_tf1": counter_graph}.items():
    with drawn.as_default():
        tf.compat.v1.summary.FileWriter(run.log_dir(name), drawn).close()
write_graph(run.log_dir("counter_tf2"), built)

run.finish({"product": product_value.item(), "counter": counts[-1]})
