@echo off
rem From folders of photos to a tested classifier: the three scripts, one after the other.
rem
rem   inception_v3\slim_train\train.bat my_photos      my_photos\cat\*.jpg, my_photos\dog\*.jpg ...
rem   inception_v3\slim_train\train.bat                TensorFlow's flower_photos
rem
rem Stopped, the training goes on with the line of 02 below and --resume. Every script explains all
rem of its flags with --help.
setlocal
set "PHOTOS="
if not "%~1"=="" set PHOTOS=--image-dir "%~f1"
cd /d "%~dp0..\.."
if not defined PYTHON set "PYTHON=.venv\Scripts\python"
set "SCRIPTS=inception_v3\slim_train"
rem the photos as TFRecords; may be deleted afterwards
set "RECORDS=data\slim\my_records"
rem the classifier: model.keras, labels.txt, model.json
set "MODEL=models\slim\my_model"

rem 1. Look at every photo, split them, write the records.
rem    --validation-percentage  of the photos: to choose the best model by
rem    --testing-percentage     of the photos: for the test at the end, and for nothing else
rem    --shards                 files of each set
rem    --resize-shorter 320     for photos of many megapixels: store them smaller
"%PYTHON%" "%SCRIPTS%\01_images_to_tfrecords.py" ^
    %PHOTOS% ^
    --out "%RECORDS%" ^
    --validation-percentage 10 ^
    --testing-percentage 10 ^
    --shards 2
if errorlevel 1 exit /b 1

rem 2. Train: first the new heads alone, then everything.
rem    --weights        imagenet: Keras's; a file of yours; or none, from scratch
rem    --image-size     pixels: 224 costs half of 299, 139 a quarter
rem    --epochs         times that each photo is seen
rem    --head-epochs    of these, how many train the heads alone
rem    --batch-size     photos in a step; fewer if the memory is short
rem    --learning-rate  of everything; a third of it if the loss grows
rem    --crop-area      least share of a photo that a crop keeps: smaller distorts more
"%PYTHON%" "%SCRIPTS%\02_train_image_classifier.py" ^
    --records "%RECORDS%" ^
    --model "%MODEL%" ^
    --weights imagenet ^
    --image-size 224 ^
    --epochs 15 ^
    --head-epochs 3 ^
    --batch-size 32 ^
    --learning-rate 0.003 ^
    --crop-area 0.3
if errorlevel 1 exit /b 1

rem 3. Test, on photos that had no part in the training.
rem    --split  test, or validation, or train to see what was learned by heart
"%PYTHON%" "%SCRIPTS%\03_eval_image_classifier.py" ^
    --records "%RECORDS%" ^
    --model "%MODEL%" ^
    --split test
if errorlevel 1 exit /b 1

echo.
echo New photos: %PYTHON% %SCRIPTS%\03_eval_image_classifier.py --model %MODEL% new.jpg
