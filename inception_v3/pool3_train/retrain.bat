@echo off
rem A classifier for your own photos, in one call (Windows; Linux and macOS: retrain.sh).
rem
rem     inception_v3\pool3_train\retrain.bat my_photos
rem     inception_v3\pool3_train\retrain.bat my_photos --how_many_training_steps 4000
rem
rem my_photos is a folder with a folder of photos for each class, whose name is the label. Without
rem one: flower_photos. What follows goes to 01_retrain.py as it is; --help lists the flags.
setlocal

set "ROOT=%~dp0..\.."
if not defined PYTHON set "PYTHON=%ROOT%\.venv\Scripts\python.exe"
set "FLAG="
set "FIRST=%~1"
if not defined FIRST goto run
if not "%FIRST:~0,1%"=="-" set "FLAG=--image_dir"
:run
"%PYTHON%" "%ROOT%\inception_v3\pool3_train\01_retrain.py" %FLAG% %*
exit /b %ERRORLEVEL%
