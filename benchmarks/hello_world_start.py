"""What does the first lesson cost beyond ``import tensorflow``?

Starts a bare import and ``first_try/01_hello_world.py`` by turns, each in a new process, and
prints the ratio of their median times::

    python benchmarks/hello_world_start.py --repeats 7
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def seconds(*command: str) -> float:
    """Run ``command`` with this Python; its wall-clock time in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="starts of each (default: 7)")
    repeats = parser.parse_args().repeats
    bare, lesson = [], []
    with tempfile.TemporaryDirectory() as folder:
        script = [str(ROOT / "first_try" / "01_hello_world.py"), "--run-dir", folder]
        seconds("-c", "import tensorflow")  # fills the disk cache for both
        for _ in range(repeats):
            bare.append(seconds("-c", "import tensorflow"))
            lesson.append(seconds(*script))
    for name, times in (("import tensorflow", bare), ("01_hello_world.py", lesson)):
        shown = " ".join(f"{value:.2f}" for value in times)
        print(f"{name}: median {statistics.median(times):.2f} s of {shown}")
    print(f"ratio of the medians: {statistics.median(lesson) / statistics.median(bare):.3f}")


if __name__ == "__main__":
    main()
