"""Is this machine ready for the course, and how fast is it? ``python course.py check`` asks here.

Nothing is imported that may be missing. TensorFlow is tried out in a process of its own, since a
CPU without AVX or a broken library ends the process: this file, run as a program, is that process.
"""

from __future__ import annotations  # so that a Python that is too old gets as far as being told

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
MACHINE = ROOT / "runs" / "machine.json"  # what the last check found
BATCH, SIDE, CHANNELS, FILTERS, KERNEL = 64, 28, 32, 64, 5  # the convolution that is timed
TIMING_SECONDS = 2


def try_tensorflow() -> dict[str, Any]:
    """Import TensorFlow, list the GPUs, and time a convolution for two seconds.

    Its speed is that of the best call, which other programs on the machine disturb least. Each
    multiplication and each addition counts as one operation.
    """
    import tensorflow as tf

    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    images = tf.random.normal([BATCH, SIDE, SIDE, CHANNELS])
    filters = tf.random.normal([KERNEL, KERNEL, CHANNELS, FILTERS])
    operations = 2 * BATCH * SIDE**2 * FILTERS * KERNEL**2 * CHANNELS
    best = float("inf")
    end = time.perf_counter() + TIMING_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        tf.nn.conv2d(images, filters, 1, "SAME")
        tf.test.experimental.sync_devices()  # a GPU may still be at it
        best = min(best, time.perf_counter() - started)
    return {"gpus": gpus, "convolution_gflops": round(operations / best / 1e9, 1)}


def cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.check_output(command, text=True).strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()


def measure_machine() -> tuple[dict[str, Any], str]:
    """Try TensorFlow out in a process of its own.

    Returns:
        CPU, cores, GPUs and the speed of the convolution, which are also kept in ``MACHINE``;
        and what went wrong. One of the two is empty.
    """
    command = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode in (-4, 0xC000001D):  # SIGILL, and what Windows calls it
        return {}, "the CPU lacks an instruction that TensorFlow needs"
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    free = hasattr(os, "sched_getaffinity")  # the cores that this process may use
    cores = len(os.sched_getaffinity(0)) if free else os.cpu_count()
    machine = {"cpu": cpu_name(), "cores": cores, **json.loads(done.stdout.splitlines()[-1])}
    MACHINE.parent.mkdir(exist_ok=True)
    MACHINE.write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")
    return machine, ""


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
        mark = "FAIL" if problem else "note" if advice else "ok"
        print(f"[{mark}]\t{thing}: {finding}", flush=True)
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

    machine, fault = measure_machine() if "tensorflow" not in missing else ({}, "")
    if machine:
        report("import tensorflow", "works")
        advice = ""
        if not machine["gpus"] and shutil.which("nvidia-smi"):  # an NVIDIA driver is here
            advice = (
                "TensorFlow for Windows has no GPU support: run the course in WSL2"
                if sys.platform == "win32"
                else command("-m", "pip", "install", "tensorflow[and-cuda]")
            )
        report("GPU", ", ".join(machine["gpus"]) or "none; everything runs on the CPU", advice)
        speed = f"{machine['convolution_gflops']} GFLOP/s in a convolution"
        report("speed", f"{speed}, {machine['cores']} cores, {machine['cpu']}")
    elif fault:
        advice = "use another machine" if fault.startswith("the CPU") else install
        report("import tensorflow", f"fails: {fault}", advice, problem=True)

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


if __name__ == "__main__":
    print(json.dumps(try_tensorflow()))
