#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "engine/model/random_model.hpp"
#include "engine/model/shapes.hpp"
#include "engine/model/tensor_plan.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>

namespace rollcast::cli {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// The character that stands for a byte in `tokenizer.json`, as UTF-8.
/// Source: openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
std::string byte_level(unsigned byte) {
  const auto printable = [](unsigned b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
  };
  unsigned point = byte;
  if (!printable(byte)) {
    point = 256;
    for (unsigned below = 0; below < byte; ++below)
      point += printable(below) ? 0u : 1u;
  }
  if (point < 0x80)
    return {static_cast<char>(point)};
  return {static_cast<char>(0xc0 | (point >> 6)), static_cast<char>(0x80 | (point & 0x3f))};
}

/// A tokenizer for a made-up model: a token for each byte, which is all that a text becomes, and
/// one that reads "#300" for each id above, so that what the model says has a text too. The model's
/// end ids are special tokens.
std::string made_up_tokenizer(const model_config& config) {
  ordered_json vocabulary = ordered_json::object();
  ordered_json added = ordered_json::array();
  auto& entries = vocabulary.get_ref<ordered_json::object_t&>();
  entries.reserve(config.vocabulary);
  for (std::size_t id = 0; id < config.vocabulary; ++id) {
    const auto token = static_cast<token_id>(id);
    if (std::ranges::find(config.eos_token_ids, token) != config.eos_token_ids.end())
      added.push_back({{"id", id},
                       {"content", "<|end-" + std::to_string(id) + "|>"},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    else // behind the others without a search: every key is new
      entries.emplace_back(
        id < 256 ? byte_level(static_cast<unsigned>(id)) : "#" + std::to_string(id), id);
  }
  const ordered_json byte_level_only{{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", false}};
  ordered_json file;
  file["version"] = "1.0";
  file["truncation"] = nullptr;
  file["padding"] = nullptr;
  file["added_tokens"] = std::move(added);
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = byte_level_only;
  file["post_processor"] = nullptr;
  file["decoder"] = byte_level_only;
  file["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false}};
  file["model"]["vocab"] = std::move(vocabulary);
  file["model"]["merges"] = ordered_json::array();
  return file.dump();
}

result<kernels::dtype> find_dtype(const std::string& name) {
  if (name == "bf16")
    return kernels::dtype::bf16;
  if (name == "f16")
    return kernels::dtype::f16;
  if (name == "f32")
    return kernels::dtype::f32;
  return fail(errc::bad_config, "unknown dtype '" + name + "': there are bf16, f16 and f32");
}

std::string megabytes(std::uint64_t bytes) {
  return std::to_string((bytes + 999'999) / 1'000'000) + " MB";
}

/// Refuses a place where the model cannot go before anything is written.
result<void> check_place(const fs::path& out, const fs::path& partial, std::uint64_t bytes) {
  std::error_code failed;
  if (fs::exists(out, failed) && (!fs::is_directory(out, failed) || !fs::is_empty(out, failed)))
    return fail(errc::io_failed,
                out.string() + " exists and is not an empty directory: give another --out");
  if (fs::exists(partial, failed))
    return fail(errc::io_failed, partial.string()
                                   + " is there, half a model of a run that was stopped or still "
                                     "goes on: remove it, or give another --out");
  const fs::path parent = fs::absolute(out).parent_path();
  fs::create_directories(parent, failed);
  if (failed)
    return fail(errc::io_failed, parent.string() + ": cannot make: " + failed.message());
  const auto space = fs::space(parent, failed);
  if (!failed && space.available < bytes)
    return fail(errc::io_failed, parent.string() + " has " + megabytes(space.available)
                                   + " free and the model takes " + megabytes(bytes)
                                   + ": give --out elsewhere, or fewer --layers");
  return {};
}

result<void> write(const fs::path& directory, const model_config& config, kernels::dtype type,
                   const make_model_options& options, std::uint64_t bytes) {
  const std::uint64_t most = std::max<std::uint64_t>(1, options.shard_mib) << 20;
  const std::uint64_t shards =
    std::clamp<std::uint64_t>((bytes + most - 1) / most, 1, plan_tensors(config).size());
  const std::size_t threads =
    options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  if (auto done = write_random_model(directory, config, options.seed, type,
                                     static_cast<std::size_t>(shards), threads);
      !done)
    return done;
  const fs::path tokenizer = directory / "tokenizer.json";
  std::ofstream out{tokenizer, std::ios::binary};
  out << made_up_tokenizer(config) << '\n';
  out.close();
  if (!out)
    return fail(errc::io_failed, tokenizer.string() + ": cannot write: " + std::strerror(errno));
  return {};
}

} // namespace

int run_make_model(const make_model_options& options) {
  auto config = find_shape(options.shape);
  if (!config)
    return refuse(config.error());
  const auto type = find_dtype(options.dtype);
  if (!type)
    return refuse(type.error());
  if (options.layers != 0)
    config->layers = options.layers;
  const std::uint64_t bytes = checkpoint_bytes(*config, *type);
  fs::path out = options.out.lexically_normal();
  if (out.filename().empty()) // "dir/" is "dir"
    out = out.parent_path();
  fs::path partial = out;
  partial += ".partial";
  if (auto ok = check_place(out, partial, bytes); !ok)
    return refuse(ok.error());
  const auto begin = std::chrono::steady_clock::now();
  auto ok = write(partial, *config, *type, options, bytes);
  std::error_code failed;
  if (ok) {
    fs::rename(partial, out, failed);
    if (failed)
      ok = fail(errc::io_failed, "cannot rename " + partial.string() + " to " + out.string() + ": "
                                   + failed.message());
  }
  if (!ok) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    return refuse(ok.error());
  }
  std::printf("rollcast: %s with %zu layers is in %s: %s, seed %llu, %.1f s\n",
              options.shape.c_str(), config->layers, out.string().c_str(), megabytes(bytes).c_str(),
              static_cast<unsigned long long>(options.seed),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return exit_done;
}

} // namespace rollcast::cli
