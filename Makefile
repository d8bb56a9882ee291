# Everything a developer does with the checkout. `make help` explains the targets.
# Variables given to `make up` reach the services: make up LOG_LEVEL=DEBUG (after `make down`).

PYTHON ?= python3
ARGS ?=

VENV := .venv/bin/python
# What needs no dependencies runs without them too, so that `make down` works in any state of the checkout.
BARE := $$([ -x $(VENV) ] && echo $(VENV) || echo "$(PYTHON)")
EMBEDDED := -m infrastructure.embedded

SERVICE_REQUIREMENTS := api-gateway/requirements.txt \
	services/user-service/requirements.txt \
	services/wallet-service/requirements.txt \
	services/transaction-service/requirements.txt \
	services/payment-gateway/requirements.txt \
	services/notification-service/requirements.txt \
	reconciler/requirements.txt

.DEFAULT_GOAL := help
.PHONY: help up down status logs infra demo reconcile audit-verify replay dlq-list dlq-replay create-admin keys reset install test test-real compose-test bench bench-ledger bench-gateway bench-relay check format lock clean python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: install ## Start the whole platform, or what of it does not run, on ports 8000 to 8005
	@$(VENV) $(EMBEDDED) up

down: python ## Stop the platform; its data stays
	@$(BARE) $(EMBEDDED) down

status: python ## Show what runs, and where
	@$(BARE) $(EMBEDDED) status

logs: python ## Follow the logs of everything (Ctrl-C ends it)
	@$(BARE) $(EMBEDDED) logs

infra: python ## Start PostgreSQL, Valkey, the Kafka-protocol broker and the MongoDB-protocol server alone
	@$(BARE) $(EMBEDDED) infra

demo: python ## Play the README's sample calls against the running platform
	@$(BARE) $(EMBEDDED) demo

reconcile: install ## Check that all the money adds up: status 0 if so, 1 if not, 2 if it cannot be said
	@$(VENV) $(EMBEDDED) reconcile

audit-verify: install ## Walk the audit's chains: status 0 if each document is as it was written, 1 if one is not, 2 if it cannot be said
	@$(VENV) $(EMBEDDED) audit-verify

replay: install ## Publish what the audit has to Kafka again: TOPIC=users.events (or all) SINCE=2026-11-24 (or 24h, or an instant)
	@$(VENV) $(EMBEDDED) replay

dlq-list: install ## Show the dead letters: ARGS="--topic users.events --group wallet-service"
	@ARGS='$(ARGS)' $(VENV) $(EMBEDDED) dlq-list

dlq-replay: install ## Put dead letters back where they came from: ARGS="--topic users.events --at 0:17" chooses
	@ARGS='$(ARGS)' $(VENV) $(EMBEDDED) dlq-replay

create-admin: install ## Make an admin: EMAIL=... (PASSWORD=..., else asked for or made up; PROMOTE=1 for a known address)
	@$(VENV) $(EMBEDDED) create-admin

keys: install ## Print a fresh ES256 pair for access tokens, as lines for a .env
	@$(VENV) -m shared.signing_keys

reset: python ## Stop the platform and remove its data; asks first (FORCE=1 does not)
	@$(BARE) $(EMBEDDED) reset

install: python ## Make the virtual environment .venv, or bring it up to date
	@"$(PYTHON)" $(EMBEDDED) install

test: install ## Run the tests, on engines of their own (ARGS="-k transfer" runs some)
	@$(VENV) -m pytest $(ARGS)

test-real: install ## Run the tests that need servers on PostgreSQL 15, Kafka (both forms) and MongoDB (ARGS as above)
	@$(VENV) -m tests.real $(ARGS)

compose-test: install ## Build the images and try the compose files on a Docker engine (some ten minutes)
	@$(VENV) -m pytest tests/compose $(ARGS)

bench: install ## Measure the whole platform, on engines of its own: docs/benchmarks.md
	@$(VENV) tests/load/platform_bench.py $(ARGS)

bench-ledger: install ## Measure the ledger alone (ARGS=--http: over HTTP)
	@$(VENV) tests/load/ledger_bench.py $(ARGS)

bench-gateway: install ## Measure what the gateway forwards on one core (ARGS=--memory: a million requests)
	@$(VENV) tests/load/gateway_bench.py $(ARGS)

bench-relay: install ## Measure how fast events leave an outbox (ARGS="--only drain" for a part of it)
	@$(VENV) tests/load/relay_bench.py $(ARGS)

check: install ## Check format, lint, layers, types and spelling, as CI does
	@scripts/check

format: install ## Format the code and repair what the linter can
	@$(VENV) -m ruff format .
	@$(VENV) -m ruff check --fix .

lock: install ## Write constraints.txt anew (ARGS=--upgrade takes newer versions)
	@cat requirements-dev.txt $(SERVICE_REQUIREMENTS) | grep -v '^-' | $(VENV) -m uv pip compile \
		--universal --python-version 3.11 --custom-compile-command 'make lock' --no-annotate --quiet \
		$(ARGS) --output-file constraints.txt pyproject.toml -

clean: ## Remove caches and the virtual environment (not the platform's data)
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -type d -not -path './.run/*' -prune -exec rm -rf {} +

python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "error: There is no $(PYTHON) on this machine: install Python 3.11 to 3.14," \
			"or name one: make PYTHON=/path/to/python3.12 $(firstword $(MAKECMDGOALS))" >&2; exit 1; }
	@"$(PYTHON)" scripts/preflight.py $(firstword $(MAKECMDGOALS))
