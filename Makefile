# `make help` prints what the lines with two hashes say. Everything here works on a fresh clone:
# the targets that need the environment build it first.

##@ Variables
## ALGO      algorithms, space-separated names or globs, e.g. ALGO="td3_bc iql"        [cql]
## DATASET   datasets, likewise: ids, globs, suites, files    [lite/hopper/medium-replay-v0]
## SEEDS     how many seeds, e.g. SEEDS=5                                [from the profile]
## STEPS     training steps, e.g. STEPS=20000                            [from the profile]
## DEVICE    auto, cpu or cuda                                                       [auto]
## PROFILE   quick or paper                                                         [quick]
## SET       settings, space-separated key=value, e.g. SET="batch_size=512 gamma=0.98"
## OUT       folder for the results                                               [results]
## PAPER     what to reproduce, e.g. PAPER=td3_bc
## EXECUTOR  local; others are not available yet                                     [local]
## TORCH     TORCH=cpu takes the CPU build of torch; otherwise pip's index decides
## PYTHON    the Python to build .venv with, 3.11 to 3.13          [the first one found]

##@ Examples
## make bench ALGO=cql
## make bench ALGO="td3_bc iql" DATASET="lite/*" SEEDS=5 DEVICE=cuda
## make setup TORCH=cpu PYTHON=python3.12
## make compare OUT=results

VARIABLES := ALGO DATASET SEEDS STEPS DEVICE PROFILE SET OUT PAPER EXECUTOR TORCH PYTHON
# Values are taken as they were typed, without make's own expansion, and reach the recipes
# through the environment only, so that no character in them means anything to make or the shell.
$(foreach v,$(VARIABLES),$(eval override $v := $$(value $v)))
export $(VARIABLES)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SHELL := bash
BENCH := .venv/bin/bench
PY := .venv/bin/python
# One stamp for the set-up and one more for each value of TORCH that was asked for.
STAMP := .venv/.installed$(if $(TORCH),-torch-$(if $(filter-out cpu,$(TORCH)),unknown,cpu))
# A stamp that names another folder came along with a copy or a move: its scripts lead elsewhere.
MOVED := $(shell [ "$$(cat .venv/.installed 2> /dev/null)" = "$$(pwd -P)" ] || echo FORCE)
CPU_INDEX := https://download.pytorch.org/whl/cpu

# Lists hold words and globs: split them, expand nothing.
WORDS := set -f; IFS=' ';
# Two workers: more of them spend their time importing torch.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup bench compare reproduce ui test check docs perf mutants learning parity faults clean FORCE

##@ Targets
help: ## this list
	@awk '/^##@ / { printf "\n%s\n", substr($$0, 5); next } \
	  /^## / { print "  " substr($$0, 4); next } \
	  /^[a-z]+:.*## / { name = $$0; sub(/:.*/, "", name); text = $$0; sub(/.*## /, "", text); \
	    printf "  %-9s %s\n", name, text }' Makefile

setup: $(STAMP) ## build .venv; does nothing when pyproject.toml and constraints.txt are unchanged
	@echo ".venv is ready"

bench: $(STAMP) ## train ALGO on DATASET, then print the comparison and where the plots are
	@$(WORDS) exec $(BENCH) run \
	  --algo $${ALGO:-cql} --dataset $${DATASET:-lite/hopper/medium-replay-v0} \
	  --profile="$${PROFILE:-quick}" $${SEEDS:+--seeds="$$SEEDS"} $${STEPS:+--steps="$$STEPS"} \
	  $${DEVICE:+--device="$$DEVICE"} $${EXECUTOR:+--executor="$$EXECUTOR"} \
	  $${OUT:+--out="$$OUT"} $${SET:+--set $$SET}

compare: $(STAMP) ## tables, plots and a report of the runs in OUT
	@exec $(BENCH) compare $${OUT:+--out="$$OUT"}

reproduce: $(STAMP) ## train what PAPER published and judge the result against it
	$(call needs,reproduce)
	@[ -n "$$PAPER" ] || { echo "error: name a paper, e.g. make reproduce PAPER=td3_bc" >&2; exit 2; }
	@exec $(BENCH) reproduce "$$PAPER" $${SEEDS:+--seeds="$$SEEDS"} $${STEPS:+--steps="$$STEPS"} \
	  $${DEVICE:+--device="$$DEVICE"} $${EXECUTOR:+--executor="$$EXECUTOR"} $${OUT:+--out="$$OUT"}

ui: $(STAMP) ## open MLflow on the results
	@exec $(BENCH) ui $${OUT:+--out="$$OUT"}

test: $(STAMP) ## the default tests: no network, no GPU
	@$(PYTEST) -q -n 2

check: $(STAMP) ## format, lint, types, layout and the site: what CI runs besides the tests
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PYTEST) -q tests/test_layout.py
	@$(MAKE) --no-print-directory docs

# Always from scratch: a page that is not read anew does not repeat its warnings.
docs: $(STAMP) ## build the site with its API reference and print where it is; warnings are errors
	@rm -rf docs/_build
	@OMP_NUM_THREADS=1 $(PY) -m sphinx -q -W -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

perf: $(STAMP) ## measure training speed beside other libraries, in environments of their own
	@$(WORDS) exec $(BENCH) perf --install $${ALGO:+--algo $$ALGO} \
	  $${DEVICE:+--device="$$DEVICE"} $${OUT:+--out="$$OUT"}

mutants: $(STAMP) ## plant bugs and see that the tests notice (an hour; goes on where it was stopped)
	@OMP_NUM_THREADS=1 exec $(PY) -m tests.mutants.run $${OUT:+--out="$$OUT"}

learning: $(STAMP) ## train every recipe on embedded data and see that it learns (hours; goes on where it was stopped)
	@exec $(PY) -m tests.learning.run $${OUT:+--out="$$OUT"}

parity: ## compare the losses with torchrl, in an environment of its own
	$(call script,tests/parity/run.py)

faults: ## kill, fill and damage things, and see that runs survive or say why not
	$(call script,tests/faults/run.py)

clean: ## remove caches and builds; .venv, results and downloads stay
	@rm -rf build dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find . -name '.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# needs: the command line must list this subcommand; a broken command line shows its own error.
define needs
@commands=$$($(BENCH) --help) || exit 2; \
grep -Eq '^ +$1( |$$)|[{,]$1[,}]' <<< "$$commands" || \
  { echo "make $@: not available yet: see CHANGELOG.md" >&2; exit 2; }
endef

# script: run a file of the project in the environment, building that only if the file is there.
define script
@[ -f $1 ] || { echo "make $@: not available yet: see CHANGELOG.md" >&2; exit 2; }
@$(MAKE) --no-print-directory setup
@exec $(PY) $1
endef

# The first Python found that fits, or the one that was asked for and no other.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
define find_python
if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi; \
for python; do "$$python" -c '$(FITS)' 2> /dev/null && break; python=; done; \
[ -n "$$python" ] || { \
  echo "error: Python 3.11 to 3.13 is needed, tried: $$*; name one: make setup PYTHON=/path/to/python" >&2; \
  exit 2; }
endef

.venv/.installed: pyproject.toml constraints.txt $(MOVED)
	@set -e; SECONDS=0; \
	if ! $(PY) -c '$(FITS)' 2> /dev/null; then \
	  $(find_python); \
	  echo "[1/3] $$("$$python" --version): creating .venv"; \
	  "$$python" -m venv --clear .venv; \
	else echo "[1/3] $$($(PY) --version): using .venv"; fi; \
	if [ "$$TORCH" = cpu ]; then \
	  echo "[2/3] installing torch, CPU build (0.2 GB to download)"; \
	  $(PY) -m pip install -q --upgrade --extra-index-url $(CPU_INDEX) -c constraints.txt torch; \
	else \
	  echo "[2/3] installing torch (CPU build 0.2 GB, CUDA build several GB; TORCH=cpu takes the first)"; \
	  $(PY) -m pip install -q -c constraints.txt torch; \
	fi; echo "      $$SECONDS s so far"; \
	echo "[3/3] installing the project and the rest (0.25 GB)"; \
	$(PY) -m pip install -q -e ".[dev,docs]" -c constraints.txt; \
	pwd -P > $@; echo "      set up in $$SECONDS s: $$($(PY) -c 'import torch; print("torch", torch.__version__)')"

.venv/.installed-torch-cpu: .venv/.installed
	@if ! $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
	  echo "replacing the CUDA build of torch by the CPU build"; \
	  $(PY) -m pip install -q --upgrade --extra-index-url $(CPU_INDEX) -c constraints.txt torch; \
	fi
	@$(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' || { \
	  echo "error: TORCH=cpu: pip found no CPU build of torch (is $(CPU_INDEX) reachable?)" >&2; exit 2; }
	@touch $@

.venv/.installed-torch-unknown:
	@echo "error: TORCH=$$TORCH: the only value is cpu" >&2; exit 2
