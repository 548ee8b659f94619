PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
TESTS ?= tests
UNIT ?= tests/unit tests/standard
MODELS := $(CURDIR)/.models
export UV_CACHE_DIR ?= $(CURDIR)/.cache/uv
# uv trusts what the system trusts, as behind a proxy that inspects TLS; a bare container has nothing.
ifneq ($(wildcard /etc/ssl/cert.pem /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt),)
export UV_SYSTEM_CERTS ?= 1
endif
# Tests start thousands of processes. Without bytecode each of them compiles LangChain anew.
unexport PYTHONDONTWRITEBYTECODE
RESULTS := .results
# Tests of processes wait as much as they work.
WORKERS ?= 4
SMOLLM2 := $(MODELS)/smollm2-135m
SECTIONS ?=
OUTPUT ?= .benchmarks

.DEFAULT_GOAL := help
.PHONY: help install lock lock-runtime demo lint format type test test-full test-newest test-lowest conformance bench bench-docs docs variables \
  faults-repeat faults-darwin soak test-consumers clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-22s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Set up the development environment in .venv

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet --no-cache-dir --disable-pip-version-check "$$(grep -Eo '^uv==[0-9.]+' requirements/dev.txt)"
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps -e .
	touch $@

lock: ## Compile the development lock anew, from the newest releases
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --group dev pyproject.toml -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --constraint requirements/dev.txt --group bench pyproject.toml \
	  -o requirements/bench.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --constraint requirements/dev.txt --group examples --group docs pyproject.toml \
	  -o requirements/examples.txt
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --group consumers pyproject.toml -o requirements/consumers.txt

# A fresh environment with the wheel, as a user has it: its folder, and how versions are chosen.
define unit_tests_in
	$(UV) venv --quiet --clear --python $(PYTHON) $(1)
	$(UV) build --quiet --wheel --out-dir $(1)/wheel
	VIRTUAL_ENV=$(1) $(UV) pip install --quiet --compile-bytecode --resolution $(2) --requirement pyproject.toml --group test
	VIRTUAL_ENV=$(1) $(UV) pip install --quiet --no-deps $(1)/wheel/*.whl
	$(1)/bin/pytest $(UNIT) -m "not full" -n 2
endef

test-newest: install ## The unit tests with the wheel and the newest releases that the ranges admit
	$(call unit_tests_in,.newest,highest)

test-lowest: install ## The same with the lowest ones, and openai 2
	$(call unit_tests_in,.lowest,lowest-direct 'openai==2.*')

lock-runtime: install ## Resolve the managed runtime anew and check that its wheels exist
	$(BIN)/python scripts/lock_runtime.py

demo: install ## The main job with the real server and a small real model; needs no Hub
	$(BIN)/python examples/build_model.py smollm2-135m $(SMOLLM2)
	$(BIN)/python examples/quickstart.py $(SMOLLM2)

lint: install ## Ruff, import contracts, spelling, workflows, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	if command -v actionlint >/dev/null; then actionlint; fi
	$(BIN)/mypy --platform linux --cache-dir .mypy_cache/linux
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

format: install ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## Everything fast
	$(BIN)/python -m pytest $(TESTS) -m "not full" -n $(WORKERS) --junitxml=$(RESULTS)/fast.xml
	$(BIN)/python -m pytest integration_tests -m "not full" --junitxml=$(RESULTS)/real.xml

$(VENV)/.examples: $(VENV)/.installed requirements/examples.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/examples.txt
	touch $@

docs: $(VENV)/.examples ## Build the site of the documentation in site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Agents and graphs of others: what they need does not go together with LangServe.
.consumers/.installed: $(VENV)/.installed requirements/consumers.txt
	$(UV) venv --quiet --clear --python $(PYTHON) .consumers
	VIRTUAL_ENV=.consumers $(UV) pip install --quiet --require-hashes -r requirements/consumers.txt
	VIRTUAL_ENV=.consumers $(UV) pip install --quiet --no-deps -e .
	touch $@

test-consumers: .consumers/.installed ## Programs that use the model: middleware, deep agents, MCP, graphs
	.consumers/bin/pytest -c consumer_tests/pytest.ini consumer_tests -m "not full"

test-full: test test-consumers $(VENV)/.examples ## Everything, on the real server and real models
	$(BIN)/python -m pytest $(TESTS) -m full -n 2 --junitxml=$(RESULTS)/slow.xml
	$(BIN)/python -m pytest integration_tests -m full --junitxml=$(RESULTS)/full.xml
	.consumers/bin/pytest -c consumer_tests/pytest.ini consumer_tests -m full

conformance: install ## Write the table of docs/langchain.md from the last test runs
	$(BIN)/python scripts/conformance.py

$(VENV)/.bench: $(VENV)/.installed requirements/bench.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/bench.txt
	touch $@

variables: install ## Write the tables of variables and of what fits into the documentation
	$(BIN)/python scripts/variables.py
	$(BIN)/python scripts/memory_table.py

bench: $(VENV)/.bench ## Measure every bar side by side; SECTIONS= for some, OUTPUT= for another folder
	$(BIN)/python -m benchmarks $(SECTIONS) --output $(OUTPUT)

bench-docs: $(VENV)/.bench ## Put the last run into docs/performance.md
	$(BIN)/python -m benchmarks.report $(OUTPUT)

soak: install ## Random calls and kills for SOAK_MINUTES (10), SOAK_SEED for the same choices again
	cd tests && ../$(BIN)/python -m soak

faults-repeat: install ## The fault suite twenty times in a row
	for i in $$(seq 20); do $(BIN)/python -m pytest tests/faults -m "not full" -q -n 2 || exit 1; done

faults-darwin: install ## The fault suite under Darwin's rules
	DARWIN_RULES=1 $(BIN)/python -m pytest tests/faults -m "not full" -n 2

clean: ## Remove what the build made
	rm -rf $(VENV) .newest .lowest .consumers .mypy_cache .pytest_cache .ruff_cache
