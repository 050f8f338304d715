# Everything on a machine that has Python 3.11 to 3.13 with pip and venv: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEV_STAMP := $(VENV)/installed-dev

.PHONY: install develop demo test test-slow fuzz kills harness lint signatures settings docs bench calibrate trace gpu figures clean

# What a user needs; `make develop` adds to the same environment what tests, lint and benchmarks need.
install: $(STAMP)
develop: $(DEV_STAMP)

define environment
$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed; name it: make PYTHON=python3.12")'
$(PYTHON) -m venv $(VENV)
$(BIN)/pip install --quiet -e '$(1)'
endef

$(STAMP): pyproject.toml
	$(call environment,.)
	touch $@

$(DEV_STAMP): pyproject.toml
	$(call environment,.[dev])
	touch $(STAMP) $@

demo: install
	$(BIN)/python train.py experiment=demo
	$(BIN)/python export.py ckpt_path=last
	$(BIN)/python eval.py artifact_path=last

test: develop
	$(BIN)/python -m pytest -m 'not slow' -q -n 2 --dist loadfile

test-slow: develop
	$(BIN)/python -m pytest -m slow -q -n 2 --dist loadfile --no-loadscope-reorder

fuzz: develop
	$(BIN)/python -m tests.fuzz

kills: develop
	$(BIN)/python -m tests.kills

# Tests against lm-evaluation-harness, whose libraries (460 MB) `make develop` leaves out.
harness: develop
	$(BIN)/pip install --quiet -e '.[harness]'
	$(BIN)/python -m pytest -q tests/test_harness.py

lint: develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# After a change of a signature that a config can name.
signatures: develop
	$(BIN)/python -m jepa_lm.utils.signatures

# After a change of a file in conf/, or of a docstring that explains a setting.
settings: develop
	$(BIN)/python -m docs.settings_page

# The pages of docs/ as a site: site/index.html.
docs: install
	$(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build

bench: develop
	$(BIN)/python -m benchmarks

# Comparisons whose outcome is known: does a study say yes where the answer is yes?
calibrate: install
	$(BIN)/python -m jepa_lm.study.calibrate trainer=cpu

trace: develop
	$(BIN)/python -m benchmarks trace

gpu: install
	$(BIN)/python -m benchmarks gpu --budget 530

figures: develop
	$(BIN)/python -m docs.plot_demo
	$(BIN)/python -m docs.plot_objectives

clean:
	rm -rf $(VENV) logs build site *.egg-info
