# Every target does its own set-up: scripts/setup makes .venv with what uv.lock says, and is quick when nothing changed.
.PHONY: help setup check mypy pyright imports site docs test test-all test-fast test-pythons demo grid-demo bench hosts hosts-down hosts-code slurm-hosts slurm-hosts-down oar-hosts oar-hosts-down
.DEFAULT_GOAL := help
# (Without the variable each build tells of mkdocs-material's successor.)
MKDOCS := NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## Make the virtual environment
	@scripts/setup

# (ruff's cache does not see that a module has come or gone, which changes how imports are sorted.)
check: setup ## Formatting, types, import rules, links of the documentation
	.venv/bin/ruff format --check .
	.venv/bin/ruff check --no-cache .
	@$(MAKE) --no-print-directory --jobs=2 --output-sync mypy pyright imports site

mypy:
	.venv/bin/mypy

pyright:
	.venv/bin/pyright

imports:
	.venv/bin/lint-imports --no-cache

site:
	$(MKDOCS) build --strict --quiet

docs: setup ## The documentation, on loopback (PORT=8000)
	$(MKDOCS) serve --dev-addr 127.0.0.1:$(or $(PORT),8000)

# Four at a time, since most of them wait; what needs the same hosts one after the other (tests/lanes.py).
TOGETHER := -n 4 --dist loadgroup --no-loadscope-reorder --durations=30

test: setup ## All tests but a few long ones
	@scripts/setup --hosts
	.venv/bin/pytest $(TOGETHER) -m "not long"

test-all: setup ## All tests (tests/selection.py says which ones `make test` leaves out, and why)
	@scripts/setup --hosts
	SRF_FUZZ=1 .venv/bin/pytest $(TOGETHER)

# Nothing of it needs a Prefect server, hosts or Ray. (Most of end_to_end/head needs none either, and takes two minutes.)
test-fast: setup ## What can be known within a minute
	.venv/bin/pytest -n 2 --dist loadgroup -m "not long and not server and not ray" -k "not ssh-server and not slurm-cluster and not oar-cluster" tests/unit tests/contract

# Some minutes for each; not a part of `make test`.
test-pythons: setup ## Unit, recorded and local tests on the other Pythons that this machine has (VERSIONS="3.10 3.13")
	@scripts/setup --runs
	scripts/test-pythons $(VERSIONS)

demo: setup ## A model search over handwritten digits, on this machine (CLUSTER=desi for a saved one)
	@scripts/setup --runs
	.venv/bin/python examples/digits.py --cluster $(or $(CLUSTER),local)

grid-demo: setup ## A campaign over this machine and two pretend clusters, one of which loses its power (as root)
	@scripts/setup --hosts
	.venv/bin/python examples/grid_demo.py

bench: setup ## What it costs, against peers in the same run
	@scripts/setup --hosts
	.venv/bin/python -m benchmarks

hosts: setup ## A pretend cluster to play with: real SSH hosts on this machine (as root)
	@scripts/setup --hosts
	@PYTHONPATH=tests .venv/bin/python -m hosts up

hosts-down: ## End the pretend cluster
	@PYTHONPATH=tests .venv/bin/python -m hosts down

slurm-hosts: setup ## A pretend Slurm cluster of real daemons (as root; ACCOUNTING=yes for one with sacct)
	@scripts/setup --hosts
	@PYTHONPATH=tests .venv/bin/python -m hosts --purpose slurm up --slurm $(if $(ACCOUNTING),--accounting)

slurm-hosts-down: ## End it
	@PYTHONPATH=tests .venv/bin/python -m hosts --purpose slurm down

oar-hosts: setup ## A pretend OAR cluster of real daemons (as root)
	@scripts/setup --hosts
	@PYTHONPATH=tests .venv/bin/python -m hosts --purpose oar up --oar

oar-hosts-down: ## End it
	@PYTHONPATH=tests .venv/bin/python -m hosts --purpose oar down

hosts-code: ## A fresh one-time code (WHO=carol HOST=desi)
	@PYTHONPATH=tests .venv/bin/python -m hosts code $(or $(HOST),desi) $(or $(WHO),carol)
