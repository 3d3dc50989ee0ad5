#!/bin/sh
# A classifier for your own photos, in one call (Linux, macOS; Windows: retrain.bat).
#
#     sh inception_v3/pool3_train/retrain.sh my_photos
#     sh inception_v3/pool3_train/retrain.sh my_photos --how_many_training_steps 4000
#
# my_photos is a folder with a folder of photos for each class, whose name is the label. Without
# one: flower_photos. What follows goes to 01_retrain.py as it is; --help lists the flags.

ROOT=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
PYTHON="${PYTHON:-$ROOT/.venv/bin/python}"
case "${1:---}" in
    -*) ;;
    *) set -- --image_dir "$@" ;;
esac
exec "$PYTHON" "$ROOT/inception_v3/pool3_train/01_retrain.py" "$@"
