# `make demo` and `make test` are all a newcomer needs; each first makes .venv where it is not there yet.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RECIPE := deployments/recipes/indian_pines.toml
ROOT := runs/indian-pines
FORECAST := runs/karman-small
CLASSES := $(ROOT)
DIGITS := runs/digits
MINUTES := 30
# On two cores, as the README says: the demo with its set-up, the demo alone, the tests.
DEMO_MINUTES := 4
DEMO_ALONE_MINUTES := 3
TEST_MINUTES := 15
FAULTS := $(CURDIR)/.pytest_cache/faults.jsonl

# The first Python that can run this project. Another one: make setup PYTHON=/path/to/python3
PYTHON = $(shell for p in python3 python3.13 python3.12 python3.14 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Nothing is reported to anybody, by whatever is started here.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help setup lock demo test lint types format test-slow test-faults test-browser test-pages test-team chromium test-newest test-lowest test-install bench quality quality-small soak soak-stages gpu-check pictures mlflow-ui prefect-ui clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(STAMP)  ## make .venv with the locked packages (without a GPU: make setup TORCH=cpu)

$(STAMP): pyproject.toml requirements/lock.txt requirements/torch.txt
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 on found. Install one, or give it: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python requirements/install.py
	@touch $@

lock: $(STAMP)  ## renew the locked packages from pyproject.toml's ranges
	$(BIN)/python -m requirements.lock

demo: $(STAMP)  ## run the main job on real data; run it again to see what is there (options: ARGS="--set train.steps=500")
	@echo "The demo takes about $(DEMO_ALONE_MINUTES) minutes on two cores; run again, it says what is there" >&2
	@$(BIN)/python -m flows.end_to_end $(RECIPE) $(ARGS)

test: lint types  ## fast tests, doctests, linters and types, on up to four cores
	$(BIN)/python -m pytest -m "not slow and not faults and not team" -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)  ## ruff and the layers (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)  ## mypy
	$(BIN)/mypy

format: $(STAMP)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(STAMP)  ## tests that start servers or take minutes
	$(BIN)/python -m pytest -m slow

# In `make test` it runs too where Chromium and Playwright are there; here nothing is skipped.
test-browser: chromium  ## open the report in the distribution's Chromium: no error, nothing clipped, all pictures there
	DIFFATS_BROWSER=required $(BIN)/python -m pytest tests/test_browser.py

test-pages: chromium  ## MLflow's pages in Chromium, as a person opens them; some minutes
	DIFFATS_BROWSER=required $(BIN)/python -m pytest tests/test_pages.py

chromium: $(STAMP)
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get install --yes --no-install-recommends chromium; } || { \
		echo "Chromium is missing. Install it, for example: sudo apt-get install chromium" >&2; exit 2; }

# Debian's package has the server below /usr/lib/postgresql. What `make setup` does not install goes into .venv.
test-team: $(STAMP)  ## start a team's servers on loopback: two clients at once, restarts, a third client, passwords
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get install --yes --no-install-recommends postgresql; } || { \
		echo "PostgreSQL is missing. Install it, for example: sudo apt-get install postgresql" >&2; exit 2; }
	@$(BIN)/python requirements/install.py team
	$(BIN)/python -m pytest -m team

# The record of a run that passed becomes docs/reliability.md. DIFFATS_FAULTS_SEED sets the random moments.
test-faults: $(STAMP)  ## kill processes, fill disks, lose servers; twenty minutes, writes docs/reliability.md
	@mkdir -p $(dir $(FAULTS))
	$(BIN)/python tests/faults/page.py --begin $(FAULTS)
	DIFFATS_FAULTS_RESULTS=$(FAULTS) $(BIN)/python -m pytest -m faults
	cp $(FAULTS) tests/faults/results.jsonl
	$(BIN)/python tests/faults/page.py

# Environments of their own. What fails in one of them is a range in pyproject.toml that is not true.
test-newest: RESOLUTION := highest
test-lowest: RESOLUTION := lowest-direct
test-lowest: DEPRECATED := -W default::DeprecationWarning -W default::FutureWarning  # an old release meets newer ones
test-newest test-lowest: test-%:
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python requirements/install.py $(RESOLUTION)
	.venv-$*/bin/python -m pytest -m "not slow and not faults and not team" $(DEPRECATED)

# Tests what is committed, as a newcomer gets it: neither this .venv nor files that were never added can help. Each command
# may take three times as long as the README says: machines differ.
test-install:  ## both commands in a fresh clone, with their times
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	git clone --quiet . "$$place/diffats"; \
	timed() { \
		started=$$(date +%s); $(MAKE) -C "$$place/diffats" $$1; took=$$(( $$(date +%s) - started )); \
		echo "make $$1: $$took s, README: about $$2 minutes"; \
		test $$took -le $$(( 180 * $$2 )) || { echo "make $$1 took more than three times as long" >&2; exit 1; }; \
	}; \
	timed demo $(DEMO_MINUTES); timed test $(TEST_MINUTES)

bench: $(STAMP)  ## measure encoding and training against their bounds and other libraries, under 30 minutes (options: ARGS=--full)
	$(BIN)/python -m benchmarks.encode $(ARGS)
	$(BIN)/python -m benchmarks.pipeline $(ARGS)
	$(BIN)/python -m benchmarks.medoid $(ARGS)
	$(BIN)/python -m benchmarks.training $(ARGS)

quality: $(STAMP)  ## measure generated samples against other methods: hours, resumable (options: ARGS="--tasks burgers_2d")
	@$(BIN)/python requirements/install.py quality
	$(BIN)/python -m benchmarks.quality $(ARGS)

quality-small:  ## one task of it from beginning to end, under 40 minutes
	$(MAKE) quality ARGS="--tasks reaction_diffusion_1d --seeds 0"

soak: $(STAMP)  ## an hour of a schedule while server, worker and database fail: no run lost, memory and files flat (options: ARGS="--minutes 6")
	$(BIN)/python -m benchmarks.soak_schedule $(ARGS)

soak-stages: $(STAMP)  ## preprocess, train and generate in a loop on growing data: memory, files, threads, disk stay flat (options: MINUTES=5)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

gpu-check: $(STAMP)  ## what only a GPU can tell: equality with the CPU, speed, exact resume; under 8 minutes on one
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

pictures: $(STAMP)  ## the README's pictures, from the reports of finished runs (options: FORECAST=runs/NAME CLASSES=runs/NAME DIGITS=runs/NAME)
	$(BIN)/python -m benchmarks.pictures $(FORECAST)=forecast $(CLASSES)=classes $(DIGITS)=digits

mlflow-ui: $(STAMP)  ## the champion, the runs and the models of the demo, on http://127.0.0.1:5000 (options: RECIPE=mine.toml)
	@exec $(BIN)/python -m diffats.registry $(RECIPE)

prefect-ui: $(STAMP)  ## flow runs and their reports, on http://127.0.0.1:4200/v2/runs
	@echo "Flow runs: http://127.0.0.1:4200/v2/runs"; echo "Prefect takes some ten seconds to start; Ctrl-C stops it."
	@export DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false; \
	exec $(BIN)/prefect server start --host 127.0.0.1 --port 4200

clean:  ## remove caches and the environment; results under runs/ stay
	rm -rf $(VENV) .venv-newest .venv-lowest *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
