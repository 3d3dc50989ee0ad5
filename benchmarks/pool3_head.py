"""How well does 01_retrain.py's head do on real features, beside a ridge classifier?

The features are the pool3 bottlenecks of all 3,670 flower_photos, in one file (``features``
float32 [n, 2048], ``labels``, ``names``, ``classes``), by default the one in the folder named by
the environment variable COURSE_DATA. The head is trained as the script trains it; what else is
given goes to the script::

    python benchmarks/pool3_head.py
    python benchmarks/pool3_head.py --splits 5 --seeds 1 -- --optimizer sgd --schedule constant

The photos themselves are not needed, so the hash that splits them is that of the features. One
split's test set has some 360 photos, a standard error of 1.5 points, however often the head is
trained; ``--splits 5`` takes five splits, with another salt in the hash each time. The ridge
classifier's alpha is chosen on the validation set, as the head's best step is.
"""

import argparse
import hashlib
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import RidgeClassifier

from data.photos import Photo, split
from utils.run import positive_int

CHAPTER = Path(__file__).resolve().parents[1] / "inception_v3" / "pool3_train"
FEATURES = "flower_photos_pool3.npz"
ALPHAS = (1.0, 10.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)


def script() -> ModuleType:
    """``01_retrain.py``, imported where Python would look for its package."""
    if str(CHAPTER) not in sys.path:
        sys.path.insert(0, str(CHAPTER))
    return importlib.import_module("01_retrain")


def places(
    features: np.ndarray, names: np.ndarray, salt: str, args: argparse.Namespace
) -> dict[str, list[int]]:
    """The rows of each set, by a hash of each photo's features."""
    photos = {}
    for row, (values, name) in enumerate(zip(features, names.tolist(), strict=True)):
        digest = hashlib.sha256(salt.encode() + values.tobytes()).hexdigest()
        label, _, file = name.partition("/")  # its own hash for a fingerprint: nothing is near
        photos[Photo(Path(file), label, digest, 1, 1)] = row
    parts = split(list(photos), args.validation_percentage, args.testing_percentage)
    return {name: [photos[photo] for photo in some] for name, some in parts.items()}


def train(module: ModuleType, args: argparse.Namespace, examples: dict, classes: int) -> tuple:
    """The script's training: test accuracy, validation accuracy, the step that was kept, and
    seconds, of training, validating and scoring the test set."""
    with tempfile.TemporaryDirectory() as folder:
        run = SimpleNamespace(
            args=args,
            backup=Path(folder) / "backup",
            resuming=False,
            log_dir=lambda name: str(Path(folder) / name),
            path=lambda name: Path(folder) / name,
        )
        started = time.perf_counter()
        training = module.Training(run, examples, classes)
        training.run_steps()
        right = [
            tf.argmax(training.head(examples[name].features), 1) == examples[name].labels
            for name in ("test", "validation")
        ]
        test, validation = (float(np.mean(part)) for part in right)
        return test, validation, int(training.best_step), time.perf_counter() - started


def ridge(examples: dict) -> tuple[float, float]:
    """A ridge classifier's test accuracy, and its alpha, the best on validation."""
    x, labels, _ = examples["train"]
    models = [RidgeClassifier(alpha=alpha).fit(x, labels) for alpha in ALPHAS]
    best = max(models, key=lambda model: model.score(*examples["validation"][:2]))
    return best.score(*examples["test"][:2]), best.alpha


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--features", type=Path, metavar="FILE", help=f"(default: COURSE_DATA's {FEATURES})")
    add("--seeds", type=positive_int, default=5, help="trainings of each split (default: 5)")
    add("--splits", type=positive_int, default=1, help="splits (default: 1)")
    add("rest", nargs="*", metavar="-- FLAG …", help="flags of 01_retrain.py")
    own = parser.parse_args()
    path = own.features or Path(os.environ.get("COURSE_DATA", ".")) / "inception_v3" / FEATURES
    if not path.is_file():
        parser.error(f"there is no file {path}: name it by --features, or set COURSE_DATA")
    with np.load(path, allow_pickle=False) as file:
        features, labels = file["features"], file["labels"].astype(np.int32)
        names, classes = file["names"], file["classes"]
    module = script()
    console = Console(width=max(100, Console().width))
    table = Table("split", "seed", "test", "validation", "kept step", "seconds", "ridge", "alpha")
    table.title = f"{len(features):,} photos, {' '.join(own.rest) or 'default flags'}"
    scores, ridges = [], []
    for number in range(own.splits):
        args = module.flags().parse_args(own.rest)
        rows = places(features, names, f"{number}" if number else "", args)
        examples = {
            name: module.Examples(
                features[rows[name]],
                labels[rows[name]],
                module.weigh(
                    labels[rows[name]],
                    len(classes),
                    name == "train" and args.class_weights == "balanced",
                ),
            )
            for name in module.SETS
        }
        accuracy, alpha = ridge(examples)
        ridges.append(accuracy)
        counts = "/".join(str(len(rows[name])) for name in module.SETS)
        for seed in range(1, own.seeds + 1):
            args.seed = seed
            test, validation, step, seconds = train(module, args, examples, len(classes))
            scores.append(test)
            table.add_row(
                f"{number} ({counts})",
                str(seed),
                f"{test:.2%}",
                f"{validation:.2%}",
                f"{step:,}",
                f"{seconds:.1f}",
                f"{accuracy:.2%}",
                f"{alpha:g}",
            )
    console.print(table)
    error = np.std(scores) / np.sqrt(len(scores)) if own.splits > 1 else None
    shown = f" (standard error of the mean {error:.2%})" if error else ""
    console.print(
        f"Mean test accuracy: head {np.mean(scores):.2%}{shown}, ridge {np.mean(ridges):.2%}"
    )


if __name__ == "__main__":
    main()
