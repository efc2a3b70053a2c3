# Every target a person needs; `make help` lists them. Scripts under ci/ do the work, so that CI, a hook and a person
# run the same files.
SHELL := /bin/sh
.DEFAULT_GOAL := help
ENGINE ?= sim

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: ## From nothing to a streamed completion on a real Kubernetes (ENGINE=sim, or ENGINE=vllm-cpu for real vLLM)
	@ci/demo --engine $(ENGINE)

.PHONY: demo-down
demo-down: ## Uninstall the demo and take the local cluster away
	@ci/demo --down

.PHONY: test
test: ## Everything a merge needs: lint, unit, charts, images, real cluster, real vLLM
	@ci/check

.PHONY: setup
setup: ## Make .venv from the hash-locked requirements
	@ci/setup

.PHONY: lint unit crds charts recipes rules dashboards images-test cluster-test e2e faults
lint: ## Formatter, linter, types, layers, generated files
	@ci/check lint
unit: ## Unit, property, golden, router and simulator tests (no cluster)
	@ci/check unit
crds: ## The CRDs on a real apiserver
	@ci/check crds
charts: ## Render, schema, lint, unit tests and static analysis of the charts
	@ci/check charts
recipes: ## Every manifest and snippet of docs/recipes, on a real apiserver with other projects' CRDs
	@ci/check recipes
rules: ## Alerts and recording rules as rendered: each fires, each keeps quiet, a real Prometheus evaluates all
	@ci/check rules
dashboards: ## Every panel of every dashboard, asked of a Prometheus that scrapes a running fleet
	@ci/check dashboards
images-test: ## Build the images and a release, and look into them
	@ci/check images
cluster-test: ## Local clusters: up, down, kill, repair
	@ci/check cluster
e2e: ## The chart on the local cluster: scale, drain, restart, evict, roll
	@ci/check e2e
faults: ## Routers rolled and killed, engines and the whole control plane killed, under load (LLMFLEET_FAULTS_RATE=100)
	@ci/check faults

.PHONY: fmt
fmt: setup ## Format the code and mend what the linter can mend
	@.venv/bin/python -m ruff check --quiet --fix . ; .venv/bin/python -m ruff format --quiet .

.PHONY: generate
generate: setup ## Write the generated files (CRDs, values schemas, reference pages)
	@.venv/bin/python ci/generate

.PHONY: golden
golden: setup ## Rewrite the golden files; the diff is the review
	@.venv/bin/python -m pytest -q tests --golden -k golden

.PHONY: lock
lock: setup ## Rewrite the hash-locked requirement files from pyproject.toml
	@.venv/bin/uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --quiet \
	    --no-emit-index-url --no-emit-find-links -o requirements/runtime.txt pyproject.toml
	@.venv/bin/uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --quiet \
	    --no-emit-index-url --no-emit-find-links --extra fast --group test --group lint --group build \
	    -c requirements/runtime.txt -o requirements/dev.txt pyproject.toml
	@.venv/bin/uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --quiet \
	    --no-emit-index-url --no-emit-find-links --group native -c requirements/dev.txt \
	    -o requirements/native.txt
	@echo uv | .venv/bin/uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-annotate \
	    --quiet --no-emit-index-url -c requirements/dev.txt -o requirements/uv.txt -

.PHONY: images
images: ## Build the container images as OCI archives (no builder needed)
	@ci/images/build

.PHONY: push
push: ## Push the images: make push REGISTRY=registry.example.com/team
	@test -n "$(REGISTRY)" || { echo "push: say where to: make push REGISTRY=registry.example.com/team" >&2; exit 2; }
	@ci/images/push --registry "$(REGISTRY)"

.PHONY: bench-operator
bench-operator: setup ## 100, 300 and 1,000 instances on a real apiserver: seconds, memory, writes
	@.venv/bin/python tests/benchmarks/operator_scale.py

.PHONY: autoscaler-long
autoscaler-long: setup ## A day in 20 minutes on the local cluster, the autoscaler killed 20 times
	@.venv/bin/python -m pytest -q tests/e2e/long_autoscaler.py

.PHONY: bench-autoscaler
bench-autoscaler: setup ## 200 autoscalers and 1,000 engines on a real apiserver: CPU, memory, decisions
	@.venv/bin/python tests/benchmarks/autoscaler_scale.py

.PHONY: bench-router
bench-router: setup ## Router CPU per request, streamed chunk and P/D flow, beside nginx, HAProxy, Envoy and the LLM routers
	@.venv/bin/python tests/benchmarks/router

.PHONY: cluster-up cluster-down
cluster-up: ## Start the local cluster
	@ci/cluster/cluster up
cluster-down: ## End the local cluster; nothing of it stays
	@ci/cluster/cluster down

.PHONY: history
history: setup ## 100,000 requests with killed and frozen engines, routers and Redis, checked against the invariants (10 min)
	@cd tests && ../.venv/bin/python -m history

.PHONY: package
package: setup ## Put a release together in build/package: charts, images, wheel, SBOMs, checksums
	@ci/package

.PHONY: faults-long
faults-long: setup ## Hours of faults on a cluster of its own: power, partitions, freezes, apiserver, disks, keys, soak (ARGS="--list")
	@cd tests && ../.venv/bin/python -m faults_long $(ARGS)

.PHONY: simulate-report
simulate-report: setup ## The autoscaler and its peers over public traces (TRACES=DIR); runs what docs/simulate.json lacks
	@nice -n 19 .venv/bin/python tests/benchmarks/simulate_report.py --traces "$(TRACES)"

.PHONY: test-chart
test-chart: ## All proofs of charts, profiles, recipes, alerts and dashboards; docs/proofs.md lists them
	@ci/check tools charts recipes rules dashboards policies profiles
