#!/usr/bin/env bash
# From folders of photos to a tested classifier: three scripts, one after the other.
#
#   inception_v3/slim_train/train.sh my_photos          # my_photos/cat/*.jpg, my_photos/dog/*.jpg …
#   inception_v3/slim_train/train.sh                    # TensorFlow's flower_photos
#   inception_v3/slim_train/train.sh my_photos --epochs 30 --image-size 299
#
# The flags are those of 02_train_image_classifier.py; --help tells them all. --quick is for all
# three scripts. A training that was stopped goes on with the same line and its --run-dir.
set -euo pipefail

PHOTOS=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    PHOTOS=(--image-dir "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")")
    shift
fi
QUICK=()
for flag in "$@"; do
    if [ "$flag" = --quick ]; then QUICK=(--quick); fi
done
cd "$(dirname "$0")/../.."
PYTHON="${PYTHON:-.venv/bin/python}"
SCRIPTS=inception_v3/slim_train
RECORDS=data/slim/my_records    # the photos as TFRecords; may be deleted afterwards
MODEL=models/slim/my_model      # the classifier: model.keras, model.json

"$PYTHON" "$SCRIPTS/01_images_to_tfrecords.py" --out "$RECORDS" \
    ${PHOTOS[@]+"${PHOTOS[@]}"} ${QUICK[@]+"${QUICK[@]}"}
"$PYTHON" "$SCRIPTS/02_train_image_classifier.py" --records "$RECORDS" --model "$MODEL" "$@"
"$PYTHON" "$SCRIPTS/03_eval_image_classifier.py" --records "$RECORDS" --model "$MODEL" \
    ${QUICK[@]+"${QUICK[@]}"}

echo
echo "New photos: $PYTHON inception_v3/pool3_train/02_test_images.py --model $MODEL new.jpg"
