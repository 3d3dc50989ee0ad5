"""How well does the head of 01_retrain.py do on real features, beside a ridge classifier?

The features are not computed here. They come from ``flower_photos_pool3.npz``: pool_3 of the
network that Google published in 2015 (inception-2015-12-05), of all 3,670 flower_photos. It has
``features`` float32 [n, 2048], ``labels`` and ``classes``, and lies in ``inception_v3/`` in the
folder named by the environment variable COURSE_DATA.

The head is trained by the function of the script itself, with the script's defaults. Each of ten
splits tests a tenth of the photos and chooses the step, or ridge's alpha, on another tenth. So each
photo is tested once, and the two are compared in pairs (McNemar)::

    python benchmarks/pool3_head.py
    python benchmarks/pool3_head.py --seed 2 --record pool3_head
"""

import argparse
import ast
import os
import platform
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold

from models.classifier import mcnemar
from utils.run import ROOT, positive_int, quoted, write_json

LESSON = ROOT / "inception_v3" / "pool3_train" / "01_retrain.py"
FEATURES = "flower_photos_pool3.npz"
ALPHAS = (30, 100, 300, 1000, 3000)
RESULTS = ROOT / "docs" / "results" / "inception_v3"


def lesson(*functions: str, **names: Any) -> dict[str, Any]:
    """The imports, the constants and some ``functions`` of 01_retrain.py, which see ``names``. Its
    flags' defaults are ``args``."""
    body = ast.parse(LESSON.read_text(encoding="utf-8")).body
    constant = [n for n in body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
    imports = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    chosen = [n for n in body if isinstance(n, ast.FunctionDef) and n.name in functions]
    defaults = {}
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add":
            given = [k.value for k in node.keywords if k.arg == "default"]
            if given and isinstance(given[0], ast.Constant):
                defaults[node.args[0].value] = given[0].value
    known: dict[str, Any] = {"args": SimpleNamespace(**defaults, seed=1, model_dir=None)}
    module = ast.Module(imports + constant + chosen, [])
    exec(compile(module, LESSON, "exec"), known)
    known.update(names)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, Path(os.environ.get("COURSE_DATA", ".")) / "inception_v3"
    add("--features", type=Path, metavar="FILE", default=default / FEATURES)
    add("--splits", type=positive_int, default=10)
    add("--steps", type=positive_int, help="training steps (default: the script's)")
    add("--seed", type=positive_int, default=1, help="other splits, other initial weights")
    add("--record", metavar="NAME", help="keep the figures in docs/results/inception_v3")
    args = parser.parse_args()
    try:
        with np.load(args.features, allow_pickle=False) as file:
            features, labels, classes = file["features"], file["labels"], file["classes"].tolist()
    except (OSError, KeyError) as error:
        raise SystemExit(f"--features: can't use {args.features} ({error})") from None
    print(f"{len(labels):,} photos of {len(classes)} classes, features from {args.features}")
    known = lesson("train_head", features=features, labels=labels, classes=classes, mirrored=None)
    known["args"].seed = args.seed
    known["args"].how_many_training_steps = args.steps or known["args"].how_many_training_steps

    folds = StratifiedKFold(args.splits, shuffle=True, random_state=args.seed)
    tests = [places for _, places in folds.split(features, labels)]
    right = {name: np.zeros(len(labels), bool) for name in ("head", "ridge")}
    accuracies: dict[str, list[float]] = {name: [] for name in right}
    started = time.perf_counter()
    for k, test in enumerate(tests):
        validation = tests[k - 1]
        kept_back = (k, (k - 1) % args.splits)
        train = np.concatenate([tests[i] for i in range(args.splits) if i not in kept_back])
        head, _, best = known["train_head"](train, validation)
        ridges = [RidgeClassifier(alpha=a).fit(features[train], labels[train]) for a in ALPHAS]
        ridge = max(ridges, key=lambda r: r.score(features[validation], labels[validation]))
        answers = {"head": head(features[test]).numpy().argmax(axis=1)}
        answers["ridge"] = ridge.predict(features[test])
        for name, answer in answers.items():
            right[name][test] = answer == labels[test]
            accuracies[name].append(float(right[name][test].mean()))
        told = ", ".join(f"{name} {values[-1]:.2%}" for name, values in accuracies.items())
        print(f"split {k + 1}: {told}; validation {best + 1}, alpha {ridge.alpha}", flush=True)
    metrics: dict[str, Any] = {}
    for name, values in accuracies.items():
        sd = float(np.std(values, ddof=1))
        metrics[f"{name}_accuracy"] = {"mean": float(np.mean(values)), "sd": sd, "values": values}
        print(f"{name}: {np.mean(values):.2%}, ± {sd:.2%} from split to split")
    only = [int((right[a] & ~right[b]).sum()) for a, b in (("head", "ridge"), ("ridge", "head"))]
    p = mcnemar(right["head"], right["ridge"])
    print(
        f"In pairs: only the head is right {only[0]:,} times, only ridge {only[1]:,}, p = {p:.2g}"
    )
    print(f"{time.perf_counter() - started:.0f} s")
    if args.record:
        command = quoted("python", "benchmarks/pool3_head.py", *sys.argv[1:])
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        pairs = {"only_head": only[0], "only_ridge": only[1], "p": p}
        record = {"command": command, "features": args.features.name, "machine": machine}
        write_json(RESULTS / f"{args.record}.json", record | {"metrics": metrics, "pairs": pairs})


if __name__ == "__main__":
    main()
