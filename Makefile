# make up      everything: tools, images, engine, stack        make down    destroy the stack
# make test    all tests on one host, drills too               make check   fast enough for every commit
# make drill   break things under load (NAME=… for some)        make check-deploy    ask a stack that is up
# make test-swarm   the stack on a Swarm of three machines (NAME=… for some)
# make test-runbooks   each command of the runbooks is typed, in about ten minutes (NAME=… for some)
# make test-clients   clients of other languages ask a stack (NAME=… for some)
# make bench   measure everything side by side (ONLY=client, gateway, deploy or growth; RECORD=1 for the docs)
# make push    fill the registry that a stack's config names (imageRegistry)
# make retirements   renew litellm/retirements.yaml, when providers end their models, from LiteLLM's newest price list
# make docs    write the reference pages of docs/ anew, after a change of Pulumi.yaml or of llmctl
# STACK=staging with any of them for another stack
STACK  ?= dev
PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
BIN    := .venv/bin
PYTEST  = $(BIN)/pytest

.PHONY: help up down push environment prepare check check-deploy integration drill bench test forget-coverage \
        test-swarm test-runbooks test-clients docs retirements
help:
	@sed -n 's/^# //p' Makefile

environment:
	@$(PYTHON) toolchain/environment.py

up: environment
	@$(BIN)/python -m toolchain up --stack $(STACK)

down: environment
	@$(BIN)/python -m toolchain down --stack $(STACK)

push: environment
	@$(BIN)/python -m toolchain push --stack $(STACK)

prepare: environment
	@$(BIN)/python -m toolchain prepare

check: environment
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/vulture
	PATH="$(BIN):$$PATH" shellcheck $$(git grep -lE '^#!/.*sh$$')
	$(BIN)/hadolint $$(git ls-files '*Dockerfile')
	$(PYTEST) tests/unit

check-deploy: environment
	$(BIN)/pytest tests/deploy --stack $(STACK) $(if $(SPEND),--spend)

integration: prepare
	$(PYTEST) tests/toolchain tests/integration --ignore=tests/integration/test_runbooks.py

drill: prepare
	$(BIN)/pytest tests/drills $(if $(NAME),-k "$(NAME)")

bench: prepare
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(RECORD),--record)

test: PYTEST = $(BIN)/coverage run -m pytest
test: forget-coverage check integration drill
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

forget-coverage: environment
	$(BIN)/coverage erase

test-swarm: prepare
	$(BIN)/pytest tests/swarm $(if $(NAME),-k "$(NAME)")

test-runbooks: prepare
	$(BIN)/pytest tests/integration/test_runbooks.py $(if $(NAME),-k "$(NAME)")

test-clients: prepare
	$(BIN)/pytest tests/clients $(if $(NAME),-k "$(NAME)")

docs: environment
	@$(BIN)/python -m toolchain.reference

retirements: environment
	@$(BIN)/python -m toolchain.retirements
