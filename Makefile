# make course   set up, then run every chapter quickly (FULL=1: in full)
# make test     set up, then run all tests
# make lint     ruff check and ruff format
# make tensorboard   all runs in TensorBoard, http://localhost:6006
# make clean    remove runs/ and caches; the data, the models and .venv stay
#
# Windows without make: the README has the same steps in plain lines.

# The first Python that TensorFlow has wheels for; or name it: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
PINS := requirements.txt constraints.txt pyproject.toml

.PHONY: course test lint tensorboard clean

course: .venv/course-installed
	$(BIN)/python course.py run $(if $(FULL),--full)

test: .venv/tests-installed
	$(BIN)/python -m pytest

lint: .venv/tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tensorboard: .venv/course-installed
	$(BIN)/tensorboard --logdir runs

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/course-installed: $(PINS)
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it:" \
		"make PYTHON=/path/to/python3.13"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/tests-installed: .venv/course-installed requirements-dev.txt requirements-export.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
