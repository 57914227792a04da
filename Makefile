# Two commands for a newcomer: `make demo` and `make test`. Each does all its own set-up.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

# uv rather than pip: only uv can lift tiatoolbox's caps on torch and timm ([tool.uv] in pyproject.toml).
# Bytecode is compiled at install, since without it every import takes twice as long, for ever.
# UV_FIND_LINKS passes on a folder of wheels where pip has been given one; empty elsewhere.
$(STAMP): pyproject.toml
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade uv
	UV_COMPILE_BYTECODE=1 UV_FIND_LINKS="$(PIP_FIND_LINKS)" VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet -e '.[test,tiatoolbox]'
	touch $(STAMP)

demo: setup
	$(VENV)/bin/wsi-dino demo

test: setup lint
	$(PY) -m pytest -n 2

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info
