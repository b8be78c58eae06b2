# Every target does its own set-up: scripts/setup makes .venv with what uv.lock says, and is quick when nothing changed.
.PHONY: help setup check docs test test-pythons demo bench hosts hosts-down hosts-code slurm-hosts slurm-hosts-down
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
	.venv/bin/mypy
	.venv/bin/pyright
	.venv/bin/lint-imports --no-cache
	$(MKDOCS) build --strict --quiet

docs: setup ## The documentation, on loopback (PORT=8000)
	$(MKDOCS) serve --dev-addr 127.0.0.1:$(or $(PORT),8000)

# Four at a time, a file each, since most of them wait: each worker has a home, a Prefect server and hosts of its own.
# In the order of the folders: the short files come last, so that no worker ends long after the others.
test: setup ## All tests
	@scripts/setup --hosts
	.venv/bin/pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=30

# Some minutes for each; not a part of `make test`.
test-pythons: setup ## Unit, recorded and local tests on the other Pythons that this machine has (VERSIONS="3.10 3.13")
	@scripts/setup --runs
	scripts/test-pythons $(VERSIONS)

demo: setup ## A model search over handwritten digits, on this machine (CLUSTER=desi for a saved one)
	@scripts/setup --runs
	.venv/bin/python examples/digits.py --cluster $(or $(CLUSTER),local)

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

hosts-code: ## A fresh one-time code (WHO=carol HOST=desi)
	@PYTHONPATH=tests .venv/bin/python -m hosts code $(or $(HOST),desi) $(or $(WHO),carol)
