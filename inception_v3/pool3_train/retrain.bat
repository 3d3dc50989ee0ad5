@echo off
rem A classifier for your own photos, in one call (Windows; Linux and macOS: retrain.sh).
rem
rem     inception_v3\pool3_train\retrain.bat my_photos
rem
rem The values are the defaults of 01_retrain.py: change what you like. More flags: --help.
setlocal

set "ROOT=%~dp0..\.."
if not defined PYTHON set "PYTHON=%ROOT%\.venv\Scripts\python.exe"

rem A folder with a folder of photos for each class, whose name is the label. Without one given:
rem flower_photos, which "python data/photos.py" fetches.
set "IMAGE_DIR=%~1"
if not defined IMAGE_DIR set "IMAGE_DIR=%ROOT%\data\flower_photos"

rem Where each photo's features are kept, so that no photo goes through the network twice. It needs
rem never be emptied: a photo that changes, or other weights, get features of their own.
set "BOTTLENECK_DIR=%ROOT%\data\bottlenecks"

rem Where the trained network goes. output_model.keras and output.json are written beside it.
set "OUTPUT_GRAPH=%ROOT%\models\pool3\output_graph.pb"
set "OUTPUT_LABELS=%ROOT%\models\pool3\output_labels.txt"

rem Percent of the photos for the choice of the best step, and for the test at the end.
set VALIDATION_PERCENTAGE=10
set TESTING_PERCENTAGE=10

rem Steps, photos in each, and the size of the first one (it falls to 0 along a cosine).
set HOW_MANY_TRAINING_STEPS=1500
set TRAIN_BATCH_SIZE=100
set LEARNING_RATE=0.01

"%PYTHON%" "%ROOT%\inception_v3\pool3_train\01_retrain.py" ^
    --image_dir "%IMAGE_DIR%" ^
    --bottleneck_dir "%BOTTLENECK_DIR%" ^
    --output_graph "%OUTPUT_GRAPH%" ^
    --output_labels "%OUTPUT_LABELS%" ^
    --validation_percentage %VALIDATION_PERCENTAGE% ^
    --testing_percentage %TESTING_PERCENTAGE% ^
    --how_many_training_steps %HOW_MANY_TRAINING_STEPS% ^
    --train_batch_size %TRAIN_BATCH_SIZE% ^
    --learning_rate %LEARNING_RATE% ^
    --print_misclassified_test_images
exit /b %ERRORLEVEL%
