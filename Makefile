# make up      everything: tools, images, engine, stack        make down    destroy the stack
# make purge   the stack with its data, and with the last one tools, images and passphrase; asks for its name
# make test    all tests on one host, drills too               make check   fast enough for every commit
# make drill   break things under load (NAME=… for some)        make check-deploy    check a running stack
# make ci      make test and make test-swarm, in the shortest order, without what is run before a release
# make database NEWEST=1, make drill NEWEST=1   LiteLLM's database with its newest release, and taken to it and back
# make test-swarm   the stack on a Swarm of three machines (NAME=… for some; DATABASE=1 with LiteLLM's database)
# make test-runbooks   run each command of the runbooks, in about ten minutes (NAME=… for some)
# make test-clients   clients of other languages call a stack (NAME=… for some)
# make test-engines   the stack on five Docker Engines, 20.10 to the newest (NAME=… for some)
# make test-official   make up downloads all from official addresses, on hosts of the test's own
# make test-pythons   the environment and the unit tests with each Python of this machine, 3.11 or newer
# make test-alerts   Prometheus' own tool tries the alert rules
# make test-upgrade   a stack of the last release is upgraded to this tree under load
# make findings   check that the surprises in findings/ are still there (NAME=… for one)
# make bench   measure everything side by side (ONLY=client, gateway, database, streams, deploy or growth; NAME=… for some rows of
#              streams or growth; RECORD=1 for the docs)
# make push    fill the registry that a stack's config names (imageRegistry)
# make retirements   update the models' shutdown dates and prices from LiteLLM's newest price list
# make locks   update the locks of Python packages, after a change of pyproject.toml (UPGRADE=1 takes the newest)
# make docs    generate the reference pages of docs/, after a change of Pulumi.yaml or of llmctl
# STACK=staging with any of them for another stack
STACK  ?= dev
PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
BIN    := .venv/bin
PYTEST  = $(BIN)/pytest
## Two at a time; tests of one file share a stack.
LANES   = -n 2
FILES   = $(LANES) --dist loadfile
## These use neither the stack that most of them share nor a database of LiteLLM's.
INDEPENDENT = tests/toolchain $(addprefix tests/integration/test_,backup.py providers.py remote_hosts.py)
## Their starts take both cores for half a minute, so that nothing else runs beside them.
WITH_DATABASE = $(addprefix tests/integration/test_,client_limits.py keys.py litellm_database.py redis.py spend.py virtual_keys.py)
## CI has no time for the other drills: they run before a release.
DRILLS = not test_litellm_database and not your_own_values
REDIS  = not password_is_rotated and not (is_away and (killed or paused))
SWARM  = not a_machine_that_is_lost or leader

.PHONY: help up down purge push environment prepare check check-deploy integration independent database drill bench test forget-coverage \
        test-swarm beside-the-swarm coverage ci test-runbooks test-clients test-engines test-official test-pythons test-alerts test-upgrade docs findings locks retirements
help:
	@sed -n 's/^# //p' Makefile

environment:
	@$(PYTHON) toolchain/environment.py

up: environment
	@$(BIN)/python -m toolchain up --stack $(STACK)

down: environment
	@$(BIN)/python -m toolchain down --stack $(STACK)

purge: environment
	@$(BIN)/python -m toolchain purge --stack $(STACK)

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
	$(PYTEST) $(LANES) tests/unit

check-deploy: environment
	$(BIN)/pytest tests/deploy --stack $(STACK) $(if $(SPEND),--spend)

integration: prepare
	$(PYTEST) $(FILES) tests/integration $(addprefix --ignore=,tests/integration/test_runbooks.py $(WITH_DATABASE) $(INDEPENDENT))

independent: prepare
	$(PYTEST) $(INDEPENDENT)

database: prepare
	$(PYTEST) $(FILES) $(if $(NEWEST),--newest) $(WITH_DATABASE) $(if $(NAME),-k "$(NAME)")

drill: prepare
	$(BIN)/pytest $(FILES) -m "$(if $(NEWEST),,not )newest" tests/drills $(if $(NAME),-k "$(NAME)")

bench: prepare
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(NAME),--name "$(NAME)") $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(RECORD),--record)

test: PYTEST = $(BIN)/coverage run -m pytest
test: forget-coverage check integration independent database drill coverage

forget-coverage: environment
	$(BIN)/coverage erase

coverage:
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-swarm: prepare
	$(BIN)/pytest tests/swarm $(if $(DATABASE),--litellm-database) $(if $(NAME),-k "$(NAME)")

beside-the-swarm: prepare
	$(MAKE) -j1 check integration independent

ci: PYTEST = $(BIN)/coverage run -m pytest
ci: forget-coverage
	$(MAKE) -j2 --output-sync=line beside-the-swarm test-swarm PYTEST="$(PYTEST)" NAME="$(SWARM)"
	$(MAKE) database PYTEST="$(PYTEST)" NAME="$(REDIS)"
	$(MAKE) drill NAME="$(DRILLS)" KILLS=1
	$(MAKE) coverage

test-runbooks: prepare
	$(BIN)/pytest tests/integration/test_runbooks.py $(if $(NAME),-k "$(NAME)")

test-clients: prepare
	$(BIN)/pytest tests/clients $(if $(NAME),-k "$(NAME)")

## Before each release.
test-engines: prepare
	$(BIN)/pytest -rA tests/release/test_engines.py $(if $(NAME),-k "$(NAME)")

test-official: prepare
	$(BIN)/pytest tests/release/test_official.py

test-pythons: environment
	$(BIN)/pytest tests/release/test_pythons.py

test-alerts: environment
	$(BIN)/pytest tests/release/test_alerts.py

test-upgrade: prepare
	$(BIN)/pytest tests/release/test_former_release.py

docs: environment
	@$(BIN)/python -m toolchain.maintenance.reference

findings:
	@./findings/run $(NAME)

locks: environment
	@PATH="$(BIN):$$PATH" $(BIN)/python -m toolchain.maintenance.locks $(if $(UPGRADE),--upgrade)

retirements: environment
	@$(BIN)/python -m toolchain.maintenance.renew_retirements
