#!/bin/sh
# A classifier for your own photos, in one call (Linux, macOS; Windows: retrain.bat).
#
#     sh inception_v3/pool3_train/retrain.sh my_photos
#
# The values are the defaults of 01_retrain.py: change what you like. More flags: --help.

ROOT=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
PYTHON="${PYTHON:-$ROOT/.venv/bin/python}"

# A folder with a folder of photos for each class, whose name is the label. Without one given:
# flower_photos, which `python data/photos.py` fetches.
IMAGE_DIR="${1:-$ROOT/data/flower_photos}"

# Where each photo's features are kept, so that no photo goes through the network twice. It needs
# never be emptied: a photo that changes, or other weights, get features of their own.
BOTTLENECK_DIR="$ROOT/data/bottlenecks"

# Where the trained network goes. output_model.keras and output.json are written beside it.
OUTPUT_GRAPH="$ROOT/models/pool3/output_graph.pb"
OUTPUT_LABELS="$ROOT/models/pool3/output_labels.txt"

# Percent of the photos for the choice of the best step, and for the test at the end.
VALIDATION_PERCENTAGE=10
TESTING_PERCENTAGE=10

# Steps, photos in each, and the size of the first one (it falls to 0 along a cosine).
HOW_MANY_TRAINING_STEPS=1500
TRAIN_BATCH_SIZE=100
LEARNING_RATE=0.01

exec "$PYTHON" "$ROOT/inception_v3/pool3_train/01_retrain.py" \
    --image_dir "$IMAGE_DIR" \
    --bottleneck_dir "$BOTTLENECK_DIR" \
    --output_graph "$OUTPUT_GRAPH" \
    --output_labels "$OUTPUT_LABELS" \
    --validation_percentage "$VALIDATION_PERCENTAGE" \
    --testing_percentage "$TESTING_PERCENTAGE" \
    --how_many_training_steps "$HOW_MANY_TRAINING_STEPS" \
    --train_batch_size "$TRAIN_BATCH_SIZE" \
    --learning_rate "$LEARNING_RATE" \
    --print_misclassified_test_images
