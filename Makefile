# `make` lists the targets. Needs Python 3.11 or newer with venv, and nothing else.

SHELL := /bin/sh
VENV := .venv
PEERS := .peers
PIP := bin/python -m pip --disable-pip-version-check --quiet install
# The official client, in an environment of its own: tests and benchmarks run it, agentd never does.
OFFICIAL_CLIENT := agentchatme>=1.1.1,<2
# Most tests wait for a process, a socket or a clock: more of them at a time than a small machine has cores.
SIDE_BY_SIDE := --numprocesses 3 --dist worksteal
ARGS :=

# Debian and Ubuntu keep venv in a package of its own, and without it leave half an environment behind.
define CREATE_VENV
@without_venv=; for name in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python; do \
    python=$$(command -v $$name) || continue; \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
    if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then without_venv=$$python; continue; fi; \
    echo "creating $(1) with $$python"; \
    "$$python" -m venv $(1) && exit 0; \
    rm -rf $(1); exit 1; \
done; \
if [ -n "$$without_venv" ]; then \
    echo "$$without_venv lacks the venv module; on Debian and Ubuntu: apt install python3-venv" >&2; \
else \
    echo "Python 3.11 or newer is needed and was not found; install it, or name it: make PYTHON=/path/to/python3" >&2; \
fi; \
exit 1
endef

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.installed ## set up and run the daemon in the foreground; ARGS="--config FILE"
	@exec $(VENV)/bin/agentd run $(ARGS)

# The page is tested in a real browser. Only root can install one; for others its tests say what to install.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	    apt-get install -y chromium || { apt-get update && apt-get install -y chromium; } || \
	    echo "Chromium could not be installed: the tests of the page will say so" >&2

.PHONY: test
test: $(VENV)/.test-installed $(PEERS)/.installed browser ## format, lint, types, import contracts, tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest -m "not soak" $(SIDE_BY_SIDE) $(ARGS)

.PHONY: demo
demo: $(VENV)/.installed ## prove that nothing is lost, in about a minute
	$(VENV)/bin/agentd demo --messages 5000 --identities 3 --conversations 40 --kills 5 $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed $(PEERS)/.installed ## measure this machine, beside the official client
	$(VENV)/bin/python -m tests.bench $(ARGS)

.PHONY: docs
docs: $(VENV)/.test-installed ## write the references in docs/ from the code, and check all of docs/; no network
	$(VENV)/bin/python -m docs.generate
	$(VENV)/bin/python -m pytest tests/test_docs.py tests/test_readme.py tests/test_help.py tests/test_advice.py $(ARGS)

.PHONY: soak
soak: $(VENV)/.test-installed $(PEERS)/.installed ## the tests that take minutes to hours
	$(VENV)/bin/python -m pytest -m soak $(ARGS)

.PHONY: peers
peers: $(PEERS)/.installed ## install the official client, for tests and benchmarks

.PHONY: clean
clean: ## remove environments, caches and build products; mail in state/ stays
	rm -rf $(VENV) $(PEERS) build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(call CREATE_VENV,$(VENV))

$(PEERS)/bin/python:
	$(call CREATE_VENV,$(PEERS))

# Stamps: an installation is repeated when pyproject.toml changes, or when it was interrupted.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing agentd into $(VENV)"
	@$(VENV)/$(PIP) --editable .
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing agentd and its test tools into $(VENV)"
	@$(VENV)/$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(PEERS)/.installed: Makefile | $(PEERS)/bin/python
	@echo "installing the official client into $(PEERS)"
	@$(PEERS)/$(PIP) '$(OFFICIAL_CLIENT)'
	@touch $@
