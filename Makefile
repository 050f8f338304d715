# Everything on a machine that has Python 3.11+ with pip and venv: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: install demo test test-slow fuzz kills lint signatures settings docs bench trace gpu figures clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python train.py experiment=demo
	$(BIN)/python export.py ckpt_path=last
	$(BIN)/python eval.py artifact_path=last

test: install
	$(BIN)/python -m pytest -m 'not slow' -q -n 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow -q -n 2 --dist loadfile --no-loadscope-reorder

fuzz: install
	$(BIN)/python -m tests.fuzz

kills: install
	$(BIN)/python -m tests.kills

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# After a change of a signature that a config can name.
signatures: install
	$(BIN)/python -m jepa_lm.utils.signatures

# After a change of a file in conf/, or of a docstring that explains a setting.
settings: install
	$(BIN)/python -m docs.settings_page

# The pages of docs/ as a site: site/index.html.
docs: install
	$(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build

bench: install
	$(BIN)/python -m benchmarks

trace: install
	$(BIN)/python -m benchmarks trace

gpu: install
	$(BIN)/python -m benchmarks gpu --budget 530

figures: install
	$(BIN)/python docs/plot_demo.py
	$(BIN)/python docs/plot_objectives.py

clean:
	rm -rf $(VENV) logs build site *.egg-info
