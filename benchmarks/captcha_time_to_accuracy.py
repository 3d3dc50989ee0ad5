"""From an empty folder to a tested captcha recogniser: how long for what accuracy?

The five scripts of ``captcha_multitask/`` are run as a user runs them, one after the other, in a
folder of their own: draw, write records, train; draw the test images with another seed, write
their records, test. Printed are the seconds of each, the curve of the training (seconds since
the beginning, steps, whole captchas of the validation images read), and the result of the test.

    python benchmarks/captcha_time_to_accuracy.py
    python benchmarks/captcha_time_to_accuracy.py --net alexnet_v2 --count 60000 --steps 3600
    python benchmarks/captcha_time_to_accuracy.py --style both --test-style legacy
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from utils.run import quoted, write_json

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "captcha_multitask"
RESULTS = ROOT / "docs" / "results" / "captcha_multitask"


def run(script: str, *flags: object) -> float:
    """Run a script of the chapter; seconds. SystemExit with its last words if it fails."""
    started = time.perf_counter()
    command = [sys.executable, str(CHAPTER / script), *map(str, flags)]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    seconds = time.perf_counter() - started
    print(f"{script}: {seconds:.1f} s", flush=True)
    return seconds


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="compact", help="the network (default: %(default)s)")
    parser.add_argument("--count", type=int, default=60_000, help="images to train on and validate")
    parser.add_argument("--steps", type=int, help="of the training (default: 03_train.py's)")
    parser.add_argument("--test-count", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--style", default="modern", help="of the images to train on")
    parser.add_argument("--test-style", help="of the test images (default: as --style)")
    parser.add_argument("--seed", type=int, default=1, help="the test images have this plus 1")
    parser.add_argument("--alphabet", default="digits", help="as in 01 (default: %(default)s)")
    parser.add_argument("--record", metavar="NAME", help="keep the figures in docs/results")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it there")
    parser.add_argument("train", nargs="*", help="after --: more flags for 03_train.py")
    args = parser.parse_args()
    if args.keep and args.keep.exists():
        parser.error(f"--keep {args.keep} exists: the measurement begins with an empty folder")
    folder = args.keep or Path(tempfile.mkdtemp(prefix="captcha-"))
    try:
        measure(folder, args)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, args: argparse.Namespace) -> None:
    steps: dict[str, float] = {}
    model, seed = folder / "model", ("--seed", args.seed)
    for part, count, style, number, shares in (
        ("train", args.count, args.style, args.seed, (min(0.05, 2_000 / args.count), 0)),
        ("test", args.test_count, args.test_style or args.style, args.seed + 1, (0, 1)),
    ):
        images, records = folder / f"{part}_images", folder / f"{part}_records"
        drawing = ("--count", count, "--seed", number, "--style", style, "--out", images)
        drawing += ("--alphabet", args.alphabet)
        writing = ("--images", images, "--out", records, "--shares", *shares)
        steps[f"draw {count:,} images ({part})"] = run(
            "01_generate_images.py", *drawing, "--run-dir", folder / f"{part}_01"
        )
        steps[f"write their records ({part})"] = run(
            "02_images_to_tfrecords.py", *writing, "--run-dir", folder / f"{part}_02"
        )
        if part == "train":
            before = sum(steps.values())
            flags = ("--net", args.net, *seed, *args.train)
            flags += ("--steps", args.steps) if args.steps else ()
            places = ("--records", records, "--model", model, "--run-dir", folder / "run_03")
            steps["train"] = run("03_train.py", *flags, *places)
    steps["test"] = run(
        "04_test.py", "--records", records, "--model", model, "--run-dir", folder / "run_04"
    )
    training, test = result(folder / "run_03"), result(folder / "run_04")

    start = before + max(0.0, steps["train"] - training["train_seconds"])  # TensorFlow's, too
    curve = Table("seconds", "steps", "whole captchas, validation", title=args.net)
    for row in training["history"]:
        whole = f"{row['whole_captcha_accuracy']:.2%}"
        curve.add_row(f"{start + row['seconds']:.0f}", f"{row['step']:,}", whole)
    times = Table("step", "seconds", title=f"{platform.machine()}, {os.cpu_count()} cores")
    for name, seconds in steps.items():
        times.add_row(name, f"{seconds:.0f}")
    times.add_row("all", f"{sum(steps.values()):.0f}")
    console = Console()
    console.print(curve)
    console.print(times)
    low, high = test["intervals"]["whole_captcha_accuracy"]
    console.print(
        f"Test on {test['data']['test_images']:,} fresh images ({style}): whole captchas "
        f"{test['metrics']['whole_captcha_accuracy']:.2%} ({low:.2%} to {high:.2%}), characters "
        f"{test['metrics']['character_accuracy']:.3%}. {training['parameters']:,} parameters.",
        soft_wrap=True,
    )
    if args.record:
        figures = {"seconds": sum(steps.values()), "training_seconds": training["train_seconds"]}
        figures |= test["metrics"] | {"low": low, "high": high}
        record = {
            "command": quoted("python", "benchmarks/captcha_time_to_accuracy.py", *sys.argv[1:]),
            "metrics": {n: {"mean": v, "sd": None, "values": [v]} for n, v in figures.items()},
            "test_images": test["data"]["test_images"],
            "steps": {name: round(seconds, 1) for name, seconds in steps.items()},
            "history": training["history"],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": training["versions"],
        }
        write_json(RESULTS / f"{args.record}.json", record)


if __name__ == "__main__":
    main()
