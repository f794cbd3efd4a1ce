# Thin: installs what is missing, then CMake does the work. PRESET is release, debug, asan or tsan.
PRESET ?= release
BUILD := build/$(PRESET)
JOBS ?= $(shell nproc)

# Of `make demo`.
GROUP_SIZE ?= 8

# Of `make chaos`.
MINUTES ?= 10
SEED ?= 1

.PHONY: demo test chaos fuzz train-test train-demo train-venv kernels-library bench build clean format deps test-deps

deps:
	@deploy/install_deps.sh

test-deps:
	@deploy/install_deps.sh --test

build: deps
	@cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) -j $(JOBS)
	@ln -sfn $(PRESET)/rollcast build/rollcast
	@ln -sfn $(PRESET)/librollcast_kernels.so build/librollcast_kernels.so

demo: deps
	@cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) -j $(JOBS) --target rollcast
	@ln -sfn $(PRESET)/rollcast build/rollcast
	@build/rollcast run --model examples/collatz/model --prompts examples/collatz/prompts.jsonl \
	  --workers 2 --group-size $(GROUP_SIZE) --max-new-tokens 1536 --seed 1 --out build/demo
	@python3 examples/collatz/check.py build/demo/responses.jsonl

test: test-deps build
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

# Clusters under fire for so many minutes; tests/chaos/README.md.
chaos: test-deps build
	@ROLLCAST_BINARY=$(CURDIR)/build/rollcast /usr/bin/python3 -B tests/chaos/chaos.py \
	  --minutes $(MINUTES) --seed $(SEED)

# The shared library that rollcast.torch_ops loads.
kernels-library: deps
	@cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) -j $(JOBS) --target rollcast_kernels_capi
	@ln -sfn $(PRESET)/librollcast_kernels.so build/librollcast_kernels.so

# A virtual environment with torch, some GB; TRAIN_PIP_FLAGS may name an index with smaller wheels.
train-venv: deps
	@test -x build/train-venv/bin/python || python3 -m venv build/train-venv
	@build/train-venv/bin/pip install -q $(TRAIN_PIP_FLAGS) -e 'clients/python[train,plot,trl]'

# Ten iterations of reinforcement learning on the Collatz example, with a live cluster.
train-demo: build train-venv
	@build/train-venv/bin/python examples/collatz/train.py --iterations 10 --prompts 16 \
	  --evaluate-every 5 --out build/train-demo

# What `test` skips: PyTorch and a rollout agree bit for bit, and it is noticed when they do not.
train-test: build train-venv
	@ROLLCAST_BINARY=$(CURDIR)/build/rollcast ROLLCAST_KERNELS=$(CURDIR)/build/librollcast_kernels.so \
	  build/train-venv/bin/python -B -m unittest discover -v -s tests/onpolicy -p '*_test.py'

# Every fuzz target for SECONDS of CPU: executions, edges, new inputs, crashes (build/fuzz/crashes).
SECONDS ?= 60
fuzz: deps
	@deploy/install_deps.sh --dev
	@cmake --preset fuzz --log-level=WARNING
	@cmake --build build/fuzz -j $(JOBS)
	@tests/fuzz/run.py --seconds $(SECONDS)

bench: build
	@build/rollcast bench engine --out build/bench-engine.json && cat build/bench-engine.json
	@build/rollcast bench scheduler --out build/bench-scheduler.json && cat build/bench-scheduler.json
	@build/rollcast bench policies --model examples/collatz/model \
	  --prompts examples/collatz/prompts.jsonl --out build/bench-policies.json \
	  && cat build/bench-policies.json

format: deps
	@deploy/install_deps.sh --dev
	@git ls-files '*.hpp' '*.cpp' | xargs clang-format-14 -i

clean:
	@rm -rf build
