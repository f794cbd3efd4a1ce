#include "cli/model_flags.hpp"

#include "cli/commands.hpp"

#include <memory>

namespace rollcast::cli {

CLI::Option* add_device(CLI::App& app, device_options& device, bool serves) {
  auto* model = add(app, "--model", device.model, "Hugging Face checkpoint directory");
  add(app, "--device", device.device, "cpu, or cuda:N for GPU N of this machine (cuda is cuda:0)");
  add(app, "--threads", device.threads, "threads of one engine; 0: this machine's share");
  add(app, "--instruction-set", device.instruction_set,
      "avx512-bf16, avx512, avx2 or neon; empty: the best there is (the bits are the same)");
  add(app, "--kv-blocks", device.kv_blocks, "KV blocks of one engine; 0: a default by memory");
  add(app, "--block-tokens", device.block_tokens, "positions of one KV block, a multiple of 16");
  add(app, "--max-batch", device.max_batch, "responses of one step")->check(at_least_1);
  add(app, "--prefill-rows", device.prefill_rows, "rows of one step")->check(at_least_1);
  if (!serves)
    return model;
  add(app, "--numerics", device.numerics,
      "numerics profile: cpu-f32-v1 or cpu-bf16-v1, on a GPU cuda-bf16-v1; empty: the first that "
      "the device has");
  add(app, "--gpu-workers", device.gpu_workers,
      "workers that share the GPU: without --kv-blocks each takes its share of the memory")
    ->check(at_least_1);
  add(app, "--kv-spill-memory-mib", device.kv_spill_memory_mib,
      "memory of a worker for KV that must leave its blocks; 0: none");
  add(app, "--kv-spill-disk-mib", device.kv_spill_disk_mib,
      "disk of a worker for KV that does not fit there either; 0: none");
  add(app, "--kv-spill-dir", device.kv_spill_dir, "directory on that disk");
  add(app, "--speculate", device.speculate,
      "off, or drafts from the response (self), its group (group), an MTP layer (mtp), an EAGLE-3 "
      "head (eagle3), or whatever pays (auto)")
    ->check(CLI::IsMember({"off", "self", "group", "mtp", "eagle3", "auto"}));
  add(app, "--draft-model", device.draft_model,
      "directory of an EAGLE-3 head or an MTP layer of this model; empty: with mtp and auto the "
      "model's own MTP layer");
  add(app, "--speculative-num-steps", device.draft_steps,
      "tokens of one path that the draft model proposes; 0: 5 for a Llama, else 3");
  add(app, "--speculative-eagle-topk", device.draft_topk,
      "tokens that it tries in one place; 0: 4 for a Llama, else 1, and 1 with num-steps");
  add(app, "--speculative-num-draft-tokens", device.draft_tokens,
      "tokens verified for one response, its last one counted; 0: 8 for a Llama, else steps + 1");
  add(app, "--draft-width", device.draft_width, "drafted tokens tried in one place; 1: chains")
    ->check(draft_widths);
  add(app, "--draft-server", device.draft_server,
      "tcp://host:port of a draft server, by which workers share what groups write; none; empty: "
      "one of this command's own, if it starts several workers");
  add(app, "--collectives", device.collectives,
      "how GPUs give each other KV and weights: nccl, off (by ZeroMQ), or auto: nccl where it is")
    ->check(CLI::IsMember({"auto", "off", "nccl"}));
  return model;
}

void add_make_model(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand(
    "make-model", "a checkpoint of a real model's shape with random weights, and a tokenizer");
  auto options = std::make_shared<make_model_options>();
  add_config(*app);
  add(*app, "--shape", options->shape, "qwen3-0.6b, qwen3-4b, qwen3-8b or llama-3.1-8b")
    ->required();
  add(*app, "--out", options->out, "directory to make")->required();
  add(*app, "--seed", options->seed, "of the weights");
  add(*app, "--dtype", options->dtype, "bf16, f16 or f32");
  add(*app, "--layers", options->layers, "fewer or more layers than the shape has; 0: as it has");
  add(*app, "--shard-mib", options->shard_mib, "size of one file, about")->check(at_least_1);
  add(*app, "--threads", options->threads, "that write at once; 0: all processors");
  app->callback([options, &chosen] { chosen = [options] { return run_make_model(*options); }; });
}

} // namespace rollcast::cli
