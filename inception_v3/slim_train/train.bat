@echo off
rem From folders of photos to a tested classifier: three scripts, one after the other.
rem
rem   inception_v3\slim_train\train.bat my_photos      my_photos\cat\*.jpg, my_photos\dog\*.jpg ...
rem   inception_v3\slim_train\train.bat                TensorFlow's flower_photos
rem   inception_v3\slim_train\train.bat my_photos --epochs 30 --image-size 299
rem
rem The flags are those of 02_train_image_classifier.py; --help tells them all. --quick is for all
rem three scripts. A training that was stopped goes on with the same line and its --run-dir.
setlocal
set "PHOTOS="
set "FLAGS="
set "QUICK="
set "FIRST=%~1"
if not defined FIRST goto run
if "%FIRST:~0,1%"=="-" goto flags
set "FIRST=%~f1"
rem a backslash before the closing quote would escape it
if "%FIRST:~-1%"=="\" set "FIRST=%FIRST%."
set PHOTOS=--image-dir "%FIRST%"
shift
:flags
if "%~1"=="" goto run
if "%~1"=="--quick" set "QUICK=--quick"
set FLAGS=%FLAGS% %1
shift
goto flags
:run
cd /d "%~dp0..\.."
if not defined PYTHON set "PYTHON=.venv\Scripts\python"
set "SCRIPTS=inception_v3\slim_train"
rem the photos as TFRecords; may be deleted afterwards
set "RECORDS=data\slim\my_records"
rem the classifier: model.keras, model.json
set "MODEL=models\slim\my_model"

"%PYTHON%" "%SCRIPTS%\01_images_to_tfrecords.py" --out "%RECORDS%" %PHOTOS% %QUICK%
if errorlevel 1 exit /b 1
"%PYTHON%" "%SCRIPTS%\02_train_image_classifier.py" --records "%RECORDS%" --model "%MODEL%" %FLAGS%
if errorlevel 1 exit /b 1
"%PYTHON%" "%SCRIPTS%\03_eval_image_classifier.py" --records "%RECORDS%" --model "%MODEL%" %QUICK%
if errorlevel 1 exit /b 1

echo.
echo New photos: "%PYTHON%" inception_v3\pool3_train\02_test_images.py --model %MODEL% new.jpg
