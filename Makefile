# Thin: installs what is missing, then CMake does the work. PRESET is release, debug, asan or tsan.
PRESET ?= release
BUILD := build/$(PRESET)
JOBS ?= $(shell nproc)

.PHONY: demo test bench build clean format deps

deps:
	@deploy/install_deps.sh

build: deps
	@cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) -j $(JOBS)
	@ln -sfn $(PRESET)/rollcast build/rollcast

demo: deps
	@cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) -j $(JOBS) --target rollcast
	@ln -sfn $(PRESET)/rollcast build/rollcast
	@build/rollcast run --model examples/collatz/model --prompts examples/collatz/prompts.jsonl \
	  --workers 2 --group-size 8 --max-new-tokens 1536 --seed 1 --out build/demo
	@python3 examples/collatz/check.py build/demo/responses.jsonl

test: build
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

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
