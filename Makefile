# `make quickstart` and `make test` need Python ≥ 3.11, pip and make; nothing else, no hub, no GPU.
PYTHON ?= python3
BIN := .venv/bin
# what took how long, of the last `make test` and `make test-slow`
REPORTS := .pytest_cache/reports
# else each process compiles a thousand files again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install quickstart test test-fast test-slow test-kernels test-durations reproductions check format docs audit fuzz soak tensorboard

install: .venv/installed

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: install
	$(BIN)/distill-lit run experiments/quickstart.yaml

test: install
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --junitxml $(REPORTS)/test.xml

test-fast: install  # no processes, no trainings: under a minute on two cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile tests/unit

test-slow: install
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist loadfile --junitxml $(REPORTS)/test-slow.xml

test-kernels: .venv/triton/installed  # the Triton kernel in Triton's interpreter, and compiled for GPUs that are not here
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 .venv/triton/bin/python -m pytest -m "slow or not slow" --numprocesses auto tests/unit/losses/test_kernels.py

# Triton without a GPU is for tests alone: it stays out of the environment, and sees that
.venv/triton/installed: .venv/installed
	$(PYTHON) -m venv .venv/triton
	.venv/triton/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps triton
	echo "import site; site.addsitedir('$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")')" \
	    > "$$(.venv/triton/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
	touch $@

test-durations:  # of the last `make test` and `make test-slow`, as of a .ci/run, into docs/test_durations.md
	$(PYTHON) tests/durations.py $(REPORTS)/test.xml $(REPORTS)/test-slow.xml

CLAIMS = $(foreach file,$(shell grep -l '^hypotheses:' experiments/*.yaml),$(if $(wildcard results/$(basename $(notdir $(file)))/records.parquet),$(file)))

reproductions: install  # what the committed results say of published claims, into docs/reproductions.md
	{ sed '/^<!--/q' docs/reproductions.md && $(BIN)/distill-lit hypotheses $(CLAIMS) --format md; } > docs/reproductions.new
	mv docs/reproductions.new docs/reproductions.md

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/codespell

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  # into site/; from files alone, no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# known holes in the pinned versions; 2 means that no advisory service could be asked
audit: .venv/audit/bin/pip-audit
	PIP_AUDIT=$(CURDIR)/$< .ci/audit

.venv/audit/bin/pip-audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit

fuzz: install  # new examples each time; CI always has the same
	FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest tests/faults/test_fuzz.py tests/faults/test_written_and_read.py tests/unit/data/test_chat_masks.py -m "slow or not slow"

soak: install  # about seven minutes; results/soak/
	$(BIN)/python benchmarks/soak.py

tensorboard: install
	$(BIN)/distill-lit tensorboard runs
