# The two commands of a newcomer are `make demo` and `make test`; both install what they need.
SHELL := /bin/sh
.DEFAULT_GOAL := help
export UV_HTTP_TIMEOUT ?= 300
# Child processes import TensorFlow and scikit-learn again and again: compile them once, here.
export UV_COMPILE_BYTECODE := 1

PYTHON := .venv/bin/python
MEMBERS := protocol agent converters cloud hardware-tests
PACKAGES := $(patsubst %/__init__.py,%,$(wildcard $(addsuffix /edgefleet_*/__init__.py,$(MEMBERS))))
AGENT_SOURCES := $(shell find protocol agent -name '*.py' -not -path '*/build/*')
EDITABLE := $(foreach member,$(MEMBERS),-e ./$(member))

.PHONY: help demo test test-agent-alone lint bench compat faults conformance fuzz docs api locks clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

.venv/installed: locks/workspace.txt $(addsuffix /pyproject.toml,$(MEMBERS)) scripts/uv.sh
	uv=$$(scripts/uv.sh) && \
	  { [ -x $(PYTHON) ] || $$uv venv --quiet --python '>=3.11,<3.14' .venv; } && \
	  $$uv pip sync --quiet --python $(PYTHON) --require-hashes locks/workspace.txt && \
	  $$uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation $(EDITABLE)
	touch $@

# The agent with nothing but its own dependencies: no hub, no TensorFlow, no scikit-learn.
.venv-agent/installed: locks/agent.txt agent/pyproject.toml protocol/pyproject.toml scripts/uv.sh $(AGENT_SOURCES)
	rm -rf agent/build protocol/build
	uv=$$(scripts/uv.sh) && \
	  { [ -x .venv-agent/bin/python ] || $$uv venv --quiet --python '>=3.11,<3.14' .venv-agent; } && \
	  $$uv pip sync --quiet --python .venv-agent/bin/python --require-hashes locks/agent.txt && \
	  $$uv pip install --quiet --python .venv-agent/bin/python --no-deps --reinstall ./protocol ./agent
	touch $@

demo: .venv/installed  ## the whole loop on 12 devices: train, push, drift, retrain, roll out (5 minutes)
	$(PYTHON) -m demo

test: .venv/installed test-agent-alone  ## all tests; installs the Debian packages that they drive
	scripts/system_packages.sh
	$(PYTHON) -m pytest -n 2 --dist loadfile --ignore=tests/agent --ignore=tests/protocol

test-agent-alone: .venv-agent/installed  ## the agent's tests where only the agent is installed
	.venv-agent/bin/python scripts/check_agent_alone.py
	.venv-agent/bin/python -m pytest -n 2 --dist loadfile tests/protocol tests/agent -q

lint: .venv/installed  ## formatting, lint rules with the import bans, strict types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy $(PACKAGES) demo

bench: .venv/installed  ## benchmarks beside their peers and floors, as JSON under build/bench/
	$(PYTHON) -m tests.bench

compat: .venv/installed  ## each model of EDGEFLEET_DATA in each runtime release, also on emulated ARM (15 minutes)
	scripts/system_packages.sh
	PATH="$$(dirname "$$(scripts/uv.sh)"):$$PATH" .venv/bin/edgefleet-compat matrix

faults: .venv/installed  ## the agent under faults: the table of cases, then 10,000 random faults (about 20 minutes)
	$(PYTHON) -m tests.faults; cases=$$?; $(PYTHON) -m tests.faults soak && exit $$cases

conformance: .venv/installed  ## SUITE=path/to/tuf-conformance: the agent's trust client, over HTTP and over MQTT (10 minutes)
	scripts/system_packages.sh
	$(PYTHON) -m tests.conformance $(SUITE)

# The engine guided by coverage; it has no wheel for every Python, and is left out where there is none.
build/fuzz/atheris: .venv/installed locks/fuzz.txt
	mkdir -p $@ && uv=$$(scripts/uv.sh) && \
	  { $$uv pip install --quiet --python $(PYTHON) --require-hashes --only-binary :all: \
	    --target $@ -r locks/fuzz.txt || true; } && touch $@

fuzz: .venv/installed build/fuzz/atheris  ## every decoder and the HTTP API under hostile input, counted (about 8 minutes)
	$(PYTHON) -m tests.fuzz

docs: .venv/installed  ## the documentation as a site under build/site/
	$(PYTHON) -m mkdocs build --strict --quiet --site-dir build/site

api: .venv/installed  ## write docs/openapi.json, docs/asyncapi.json and the agent's settings from the code
	.venv/bin/edgefleet openapi > docs/openapi.json
	$(PYTHON) scripts/asyncapi.py > docs/asyncapi.json
	$(PYTHON) scripts/agent_settings.py

locks: scripts/uv.sh  ## resolve the pins anew (host-neutral, see docs/adr/0001)
	uv=$$(scripts/uv.sh) && export UV_CUSTOM_COMPILE_COMMAND="make locks" && \
	  $$uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-package edgefleet-protocol \
	    --no-emit-package edgefleet-converters --no-annotate --all-extras --group dev \
	    $(addsuffix /pyproject.toml,$(MEMBERS)) -o locks/workspace.txt && \
	  $$uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-package edgefleet-protocol --no-annotate --all-extras \
	    protocol/pyproject.toml agent/pyproject.toml locks/agent-test.in -c locks/workspace.txt \
	    -o locks/agent.txt && \
	  $$uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate locks/fuzz.in -o locks/fuzz.txt

clean:  ## remove what make built
	rm -rf build .venv .venv-agent .uv
