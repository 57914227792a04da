# Two commands for a newcomer: `make demo` and `make test`. Each does all its own set-up.
VENV := .venv
PY := $(VENV)/bin/python
# 3.11 or later; `make demo PYTHON=python3.12` where python3 is older
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint docs bench clean

setup: $(STAMP)

# uv rather than pip: only uv can lift tiatoolbox's caps on torch and timm ([tool.uv] in pyproject.toml).
# Bytecode is compiled at install, since without it every import takes twice as long, for ever.
# UV_FIND_LINKS passes on a folder of wheels where pip has been given one; empty elsewhere.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade uv
	UV_COMPILE_BYTECODE=1 UV_FIND_LINKS="$(PIP_FIND_LINKS)" VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet -e '.[test,tiatoolbox]'
	touch $(STAMP)

demo: setup
	$(VENV)/bin/wsi-dino demo

# tests marked slow are left to CI (.ci/run sets CI), so that this stays under ten minutes; CI=1 runs them here too
test: setup lint
	$(PY) -m pytest -n 2 --dist loadgroup $(if $(CI),,-m "not slow")

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# the site, into site/; the variable silences an advertisement of mkdocs-material
docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

bench: setup
	$(PY) benchmarks/reading.py
	$(PY) benchmarks/encoders.py --encoder dinov3-s --encoder efficientnet-lite0
	$(PY) benchmarks/embed.py
	$(PY) benchmarks/mil.py
	$(PY) benchmarks/memory.py

clean:
	rm -rf $(VENV) build *.egg-info
