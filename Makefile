PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Tests compute with one thread each, so that two at a time take half as long. A file's tests share what they set up.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo check test families encodings engines fuzz lint types docs peers bench clean

setup: $(READY)

# constraints.txt pins what the figures were made with.
$(READY): pyproject.toml constraints.txt
	@echo "setting up .venv: takes a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/kvtool install-model
	@touch $@

demo: setup
	@$(BIN)/kvtool demo

# Before a commit: the fast tests of what differs from the main branch. pytest ends with 5 where there are none.
check: lint types
	@chosen=$$($(BIN)/python tests/changed.py) && test -z "$$chosen" || $(PYTEST) -m "not slow" $$chosen || test $$? -eq 5

test: lint types
	$(PYTEST) --durations 15

# Whole suites, of which `make test` runs a part: every family that transformers has (three minutes), and every encoding that
# Python has, with chardet's test files, which are fetched. Both fail where an answer or a text is wrong.
families encodings: setup
	$(BIN)/python -m tests.suites $@ --write docs/results/$@.md

# vLLM, LMCache and SGLang, each in an environment of its own under build/engines, and the connectors' tests in it.
engines: setup
	$(BIN)/python -m tests.suites.engines

# Ten minutes for the API and two and a half for each parser, unless KVTOOL_FUZZ_SECONDS says otherwise; `make test` gives all of them forty seconds.
fuzz: export KVTOOL_FUZZ_SECONDS ?= 600
fuzz: setup
	$(BIN)/python -m pytest tests/server/test_fuzz.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# mypy takes codecs/ for the standard library's where it sees it at the top, and then gets integers wrong.
types: setup
	@mkdir -p build/types && for folder in kvtool benchmarks docsgen tests; do ln -sfn ../../$$folder build/types/$$folder; done
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

# The site, in build/site/: fails where a generated page is not what the code says, or a link leads nowhere.
docs: setup
	$(BIN)/python -m docsgen --check
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

# The other tools that recipes are compared with, each in an environment of its own under build/peers.
peers: setup
	$(BIN)/python -m benchmarks peers
	$(BIN)/python -m benchmarks quality
	$(BIN)/python -m benchmarks prune_peers

bench: setup
	$(BIN)/python -m benchmarks quality --write docs/results/recipes.md
	$(BIN)/python -m benchmarks recommend --write docs/results/recommendations.md
	$(BIN)/python -m benchmarks pruning --write docs/results/pruning.md
	$(BIN)/python -m benchmarks pruned_speed --write docs/results/pruning_speed.md
	$(BIN)/python -m benchmarks reading_pages --write docs/results/reading_pages.md
	$(BIN)/python -m benchmarks ttft
	$(BIN)/python -m benchmarks prefill
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks codecs

clean:
	rm -rf .venv build dist *.egg-info
