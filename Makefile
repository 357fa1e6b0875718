# Two commands: `make asset` (environment, then a prompt becomes a 3D asset) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= a red striped mug
CONFIG ?= custom/dreammapping/configs/vdm-gs.yaml
ARGS   ?=

RUN := $(VENV)/bin/python

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# One test opens a page in a browser; where none can be installed, that test is skipped.
$(VENV)/.browser: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,browser]" || true
	touch $@

.PHONY: install asset test
install: $(VENV)/.installed

asset: install
	$(RUN) launch.py --config $(CONFIG) --train system.prompt_processor.prompt="$(PROMPT)" $(ARGS)

test: install $(VENV)/.browser
	$(RUN) -m pytest
