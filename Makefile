# make demo       install into .venv and run the demonstration
# make test       the fast tests (minutes)
# make test-slow  the tests that train or audit for longer
# make test-offline   the fast tests and the demonstration where there is no network at all (Linux)
# make fuzz       a million mutants of hostile files; crashers are kept in fuzz/, stop and continue
# make hostile-figures   results/hostile-files.json and docs/hostile_files.md (an hour, most of it `fuzz`)
# make lint       ruff and mypy
# make clean      remove .venv and caches
#
# Another interpreter:   make test PYTHON=python3.12
# Options for pip:       make demo PIP_FLAGS="--extra-index-url URL_OF_CPU_WHEELS"
.POSIX:

PYTHON ?= python3
VENV ?= .venv
MUTANTS ?= 1000000
PIP_FLAGS ?=
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS)

demo: $(VENV)/installed
	$(VENV)/bin/genwarden demo

# One process per core with one thread each: small networks gain nothing from more threads.
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto

test-slow: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m slow

# A network namespace with nothing but the machine itself in it; Ray talks to itself through that.
test-offline: $(VENV)/installed-dev
	unshare --map-root-user --net sh -c 'ip link set lo up && ! timeout 5 $(VENV)/bin/python -c \
	  "import socket; socket.create_connection((\"1.1.1.1\", 443), 3)" 2>/dev/null && \
	  OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto && \
	  $(VENV)/bin/genwarden demo --out offline-demo --restart'

fuzz: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/artifacts/fuzz.py --mutants $(MUTANTS) --out fuzz

hostile-figures: fuzz
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/artifacts/measure.py --fuzz fuzz/seed-0.json

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The stamps make a second run start at once; a changed requirement installs again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e ".[dev]"
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build

.PHONY: demo test test-slow test-offline fuzz hostile-figures lint clean
