#!/usr/bin/env bash
# From folders of photos to a tested classifier: the three scripts, one after the other.
#
#   inception_v3/slim_train/train.sh my_photos          # my_photos/cat/*.jpg, my_photos/dog/*.jpg …
#   inception_v3/slim_train/train.sh                    # TensorFlow's flower_photos
#
# What stands behind the folder goes to the training, and counts more than what stands below:
#
#   inception_v3/slim_train/train.sh my_photos --image-size 299 --epochs 30
#
# Stopped, the training goes on with the line of 02 below and --resume. Every script explains all of
# its flags with --help.
set -euo pipefail

PHOTOS=()
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    PHOTOS=(--image-dir "$(cd "$1" && pwd)")
    shift
fi
cd "$(dirname "$0")/../.."
PYTHON="${PYTHON:-.venv/bin/python}"
SCRIPTS=inception_v3/slim_train
RECORDS=data/slim/my_records    # the photos as TFRecords; may be deleted afterwards
MODEL=models/slim/my_model      # the classifier: model.keras, labels.txt, model.json

# 1. Look at every photo, split them, write the records.
#    --validation-percentage  of the photos: to choose the best model by
#    --testing-percentage     of the photos: for the test at the end, and for nothing else
#    --shards                 files of each set
#    --resize-shorter 320     for photos of many megapixels: store them smaller
"$PYTHON" "$SCRIPTS/01_images_to_tfrecords.py" \
    ${PHOTOS[@]+"${PHOTOS[@]}"} \
    --out "$RECORDS" \
    --validation-percentage 10 \
    --testing-percentage 10 \
    --shards 2

# 2. Train: first the new heads alone, then everything.
#    --weights        imagenet: Keras's; a file of yours; or none, from scratch
#    --image-size     pixels: 224 costs half of 299, 139 a quarter
#    --epochs         times that each photo is seen
#    --head-epochs    of these, how many train the heads alone
#    --batch-size     photos in a step; fewer if the memory is short
#    --learning-rate  of everything; a third of it if the loss grows
#    --crop-area      least share of a photo that a crop keeps: smaller distorts more
"$PYTHON" "$SCRIPTS/02_train_image_classifier.py" \
    --records "$RECORDS" \
    --model "$MODEL" \
    --weights imagenet \
    --image-size 224 \
    --epochs 15 \
    --head-epochs 3 \
    --batch-size 32 \
    --learning-rate 0.003 \
    --crop-area 0.3 \
    "$@"

# 3. Test, on photos that had no part in the training.
#    --split  test, or validation, or train to see what was learned by heart
"$PYTHON" "$SCRIPTS/03_eval_image_classifier.py" \
    --records "$RECORDS" \
    --model "$MODEL" \
    --split test

echo
echo "New photos: $PYTHON $SCRIPTS/03_eval_image_classifier.py --model $MODEL new.jpg"
