# LiveInsight: `make run` and `make test` are all one needs. Needs Python 3.11+, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Where the stack is most likely to be, and edge.yaml always is.
REGIONS := us-east-1 us-west-2 eu-west-1 eu-central-1 ap-northeast-1 ap-northeast-2 ap-southeast-1
# In an environment of its own: it pins much of what the others use, at other versions.
CHECKOV_VERSION := 3.3.30
CHECKOV := .venv-checkov/.installed-$(CHECKOV_VERSION)

# An independent emulator of AWS. It pins botocore, so it has an environment of its own.
MINISTACK := 1.5.33
EMULATOR := .venv-ministack

# Where Python is told to keep no bytecode, as in many containers, every process that a run or a test starts would compile
# all its modules anew: half of the time of the tests.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-emulator emulator lint lint-security format load simulate bench bench-api bench-replay \
	bench-units bench-cold-start package deploy rollback smoke stage lock clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make run DEMO=0 FRESH=1 COLLECTOR_PORT=8081: $(BIN)/python -m infra.local --help tells what can be set"
	@echo "  make test ARGS='-k tracker': arguments for pytest"

run: $(INSTALLED) ## Start everything on this machine, with demo traffic; Ctrl-C stops it
	@exec $(BIN)/python -m infra.local

test: $(INSTALLED) ## Run the tests
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

# A replay killed 20 times, 20 s of each fault of DynamoDB and Redis, SIGTERM at 50 moments, a session of 1,000,000 events.
test-long: export LIVEINSIGHT_LONG = 1
test-long: $(INSTALLED) ## Run the tests that take minutes
	$(BIN)/pytest -n 2 -m "long or sized" $(ARGS)

lint: $(INSTALLED) lint-security ## Check style, types and templates
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cfn-lint --regions $(REGIONS) -- infra/cloudformation/*.yaml

lint-security: $(CHECKOV) ## Check the templates and the Dockerfile against security rules
	.venv-checkov/bin/checkov --quiet --compact --skip-download --framework cloudformation dockerfile --directory infra

emulator: $(EMULATOR)/.installed-$(MINISTACK) ## Install an independent emulator of AWS that runs real Lambda code

test-emulator: $(INSTALLED) emulator ## Run the stacks and the packaged function on that emulator
	LIVEINSIGHT_LONG=1 $(BIN)/pytest tests/flow/test_emulator.py tests/flow/test_deploy_on_emulator.py $(ARGS)

load: $(INSTALLED) ## Post 1,000 events/s for 30 s to a running `make run`, and check that each is counted
	@exec $(BIN)/python -m tests.flow.load --collector http://127.0.0.1:$${COLLECTOR_PORT:-8080} \
	--api http://127.0.0.1:$${QUERY_PORT:-8000} $(ARGS)

simulate: $(INSTALLED) ## Simulate many more schedules of failures than the tests do
	@exec $(BIN)/python -m tests.simulation $(ARGS)

bench: $(INSTALLED) ## Measure everything beside the ordinary design: table, results.json, and README.md's part
	@exec $(BIN)/python -m tests.benchmarks --publish $(ARGS)

bench-api: $(INSTALLED) ## Measure the query API: 1,000 dashboards at once, and reads of a day, a month, a year
	@$(BIN)/python -m tests.benchmarks.bench_reads
	@$(BIN)/python -m tests.benchmarks.bench_api $(ARGS)

bench-replay: $(INSTALLED) ## Measure how fast a replay is beside live consumption
	@$(BIN)/python -m tests.benchmarks bench_replay $(ARGS)

bench-units: $(INSTALLED) ## Measure what traffic uses of each AWS service, for `python -m infra cost`
	@$(BIN)/python -m tests.benchmarks.bench_units $(ARGS)

bench-cold-start: $(INSTALLED) ## Measure how long a function's cold start takes of ours
	@$(BIN)/python -m tests.benchmarks.bench_cold_start $(ARGS)

package: $(INSTALLED) ## Make the functions' zip, and say what it weighs
	@exec $(BIN)/python -m infra package $(ARGS)

deploy: $(INSTALLED) stage ## Bring a stage on AWS up to date: make deploy STAGE=prod ARGS='--image-tag T'
	@exec $(BIN)/python -m infra deploy --stage $(STAGE) $(ARGS)

rollback: $(INSTALLED) stage ## Put a stage's function and services back to before the last deploy: make rollback STAGE=prod
	@exec $(BIN)/python -m infra rollback --stage $(STAGE) $(ARGS)

smoke: $(INSTALLED) stage ## Post events to a stage and read them back: make smoke STAGE=prod
	@exec $(BIN)/python -m infra smoke --stage $(STAGE) $(ARGS)

stage:
	@test -n "$(STAGE)" || { echo "error: name the stage: make $(MAKECMDGOALS) STAGE=dev" >&2; exit 2; }

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# uv resolves for every platform and Python at once, which pip cannot. It reads no setup.cfg without a setup.py.
lock: $(INSTALLED) ## Renew requirements.lock from setup.cfg
	$(BIN)/pip install --quiet uv
	$(BIN)/python -c 'import configparser; c = configparser.ConfigParser(); c.read("setup.cfg"); \
	print(c["options"]["install_requires"], *c["options.extras_require"].values(), sep="\n")' \
	| $(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements.lock -

clean: ## Remove the environment and all caches, but nothing that a run has kept
	rm -rf $(VENV) $(EMULATOR) .venv-checkov .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Compiling every module would take longer than installing them. The .pth file lets `python -m producer` work from any directory.
$(INSTALLED): requirements.lock setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	@$(BIN)/python -c 'import pathlib, sysconfig; \
	pathlib.Path(sysconfig.get_path("purelib"), "liveinsight.pth").write_text(str(pathlib.Path.cwd()) + "\n")'
	@touch $@

$(CHECKOV):
	@echo "Installing checkov $(CHECKOV_VERSION) into .venv-checkov ..."
	@$(PYTHON) -m venv .venv-checkov
	@.venv-checkov/bin/pip install --quiet --disable-pip-version-check checkov==$(CHECKOV_VERSION)
	@touch $@

# Of the same Python as ours: its functions run what is installed here.
$(EMULATOR)/.installed-$(MINISTACK): $(INSTALLED)
	@echo "Installing ministack $(MINISTACK) into $(EMULATOR) ..."
	@rm -rf $(EMULATOR)
	@$(BIN)/python -m venv $(EMULATOR)
	@$(EMULATOR)/bin/pip install --quiet --disable-pip-version-check --no-compile ministack==$(MINISTACK)
	@touch $@
