#include "engine/model/random_model.hpp"

#include "engine/base/hash.hpp"
#include "engine/base/prng.hpp"
#include "engine/model/tensor_plan.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace rollcast {

namespace {

struct named_shape {
  std::string name;
  std::vector<std::size_t> shape;
};

std::size_t elements_of(const named_shape& tensor) {
  std::size_t out = 1;
  for (const std::size_t extent : tensor.shape)
    out *= extent;
  return out;
}

/// An MTP layer is a decoder layer like the last one, and some tensors more.
void add_mtp_layers(const model_config& config, std::vector<named_shape>& out) {
  const bool mimo = config.family == architecture::mimo;
  const std::string last = "model.layers." + std::to_string(config.layers - 1) + ".";
  const auto base = plan_tensors(config);
  for (std::size_t layer = 0; layer < config.mtp_layers; ++layer) {
    const std::string prefix = mimo ? "model.mtp_layers." + std::to_string(layer) + "."
                                    : "model.layers." + std::to_string(config.layers + layer) + ".";
    for (const auto& tensor : base) {
      if (tensor.name.starts_with(last))
        out.push_back({prefix + tensor.name.substr(last.size()), tensor.shape});
    }
    const auto norms = mimo ? std::array{"token_layernorm", "hidden_layernorm", "final_layernorm"}
                            : std::array{"enorm", "hnorm", "shared_head.norm"};
    for (const auto* norm : norms)
      out.push_back({prefix + norm + ".weight", {config.hidden}});
    out.push_back({prefix + (mimo ? "input_proj.weight" : "eh_proj.weight"),
                   {config.hidden, 2 * config.hidden}});
    if (!mimo)
      for (const auto* shared : {"embed_tokens", "shared_head.head"})
        out.push_back({prefix + shared + ".weight", {config.vocabulary, config.hidden}});
  }
}

/// Rounds to the nearest half, ties to even. |x| is far below the largest half here.
std::uint16_t round_f16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float size = std::fabs(x);
  if (size < 0x1p-14f) // A subnormal half, or zero, is a multiple of 2^-24.
    return static_cast<std::uint16_t>(
      sign | static_cast<std::uint32_t>(std::nearbyint(static_cast<double>(size) * 0x1p24)));
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

/// About normal: the sum of four uniforms of 16 bits, centred, in units of its deviation.
float bell(prng& random) noexcept {
  constexpr float deviation = 37837.227f; // 65536 / sqrt(3)
  const std::uint64_t bits = random.next();
  std::int32_t sum = -2 * 65535;
  for (int part = 0; part < 4; ++part)
    sum += static_cast<std::int32_t>((bits >> (16 * part)) & 0xffffu);
  return static_cast<float>(sum) / deviation;
}

/// Elements made and written at a time: what a thread needs of memory, whatever the model's size.
constexpr std::size_t piece_elements = std::size_t{1} << 20;

/// The values of one tensor, ascending, a piece at a time.
class tensor_values {
public:
  tensor_values(const named_shape& tensor, std::uint64_t seed, kernels::dtype type)
    : random_(hash_of(std::span<const char>(tensor.name), seed).low), type_(type),
      left_(elements_of(tensor)) {
    const bool matrix = tensor.shape.size() == 2;
    const bool bias = tensor.name.ends_with(".bias");
    mean_ = matrix || bias ? 0.0f : 1.0f;
    deviation_ =
      matrix ? 1.0f / std::sqrt(static_cast<float>(tensor.shape[1])) : (bias ? 0.02f : 0.1f);
  }

  /// The next piece, in `out`'s memory. @returns its bytes; none at the end.
  std::span<const std::byte> next(std::vector<std::byte>& out) {
    const std::size_t count = std::min(left_, piece_elements);
    left_ -= count;
    out.resize(count * kernels::size_of(type_));
    switch (type_) {
      case kernels::dtype::f32: fill<float>(out, count, [](float x) { return x; }); break;
      case kernels::dtype::bf16: fill<std::uint16_t>(out, count, kernels::round_bf16); break;
      case kernels::dtype::f16: fill<std::uint16_t>(out, count, round_f16); break;
    }
    return out;
  }

private:
  template <class T, class Round>
  void fill(std::vector<std::byte>& out, std::size_t count, Round round) {
    for (std::size_t i = 0; i < count; ++i) {
      const T value = round(mean_ + deviation_ * bell(random_));
      std::memcpy(&out[i * sizeof value], &value, sizeof value);
    }
  }

  prng random_;
  kernels::dtype type_;
  std::size_t left_;
  float mean_ = 0;
  float deviation_ = 1;
};

result<void> write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out)
    return fail(errc::io_failed, path.string() + ": cannot write: " + std::strerror(errno));
  return {};
}

result<void> write_shard(const std::filesystem::path& path, const std::vector<named_shape>& tensors,
                         std::uint64_t seed, kernels::dtype type) {
  constexpr std::array<const char*, 3> names{"F32", "BF16", "F16"}; // In the order of dtype.
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::size_t at = 0;
  for (const auto& tensor : tensors) {
    const std::size_t end = at + elements_of(tensor) * kernels::size_of(type);
    header[tensor.name] = {{"dtype", names[static_cast<std::size_t>(type)]},
                           {"shape", tensor.shape},
                           {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' '); // As the reference writer aligns the data.
  const std::uint64_t length = text.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << text;
  std::vector<std::byte> piece;
  for (std::size_t i = 0; i < tensors.size() && out; ++i) {
    tensor_values values(tensors[i], seed, type);
    for (auto bytes = values.next(piece); !bytes.empty() && out; bytes = values.next(piece))
      out.write(reinterpret_cast<const char*>(bytes.data()),
                static_cast<std::streamsize>(bytes.size()));
  }
  out.close();
  if (!out)
    return fail(errc::io_failed, path.string() + ": cannot write: " + std::strerror(errno));
  return {};
}

struct planned_shard {
  std::string file;
  std::vector<named_shape> tensors;
};

/// Writes all shards on up to `threads` threads. @returns the failure of the first that failed;
/// after a failure no shard is begun.
result<void> write_shards(const std::filesystem::path& directory,
                          const std::vector<planned_shard>& shards, std::uint64_t seed,
                          kernels::dtype type, std::size_t threads) {
  std::vector<result<void>> outcomes(shards.size());
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    for (std::size_t i = next++; i < shards.size() && !failed; i = next++) {
      outcomes[i] = write_shard(directory / shards[i].file, shards[i].tensors, seed, type);
      failed = failed || !outcomes[i];
    }
  };
  {
    std::vector<std::jthread> helpers;
    try {
      while (helpers.size() + 1 < std::min(threads, shards.size()))
        helpers.emplace_back(work);
    } catch (const std::system_error&) {
      // No more threads to be had: those that run, this one at least, do all the work.
    }
    work();
  }
  for (auto& outcome : outcomes)
    if (!outcome)
      return std::move(outcome);
  return {};
}

} // namespace

result<void> write_random_model(const std::filesystem::path& directory, const model_config& config,
                                std::uint64_t seed, kernels::dtype type, std::size_t shards,
                                std::size_t threads) {
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  if (failed)
    return fail(errc::io_failed, directory.string() + ": cannot make: " + failed.message());
  constexpr std::array<const char*, 3> names{"float32", "bfloat16", "float16"};
  model_config written = config;
  written.dtype = names[static_cast<std::size_t>(type)];
  if (const auto done = write_text(directory / "config.json", to_config_json(written)); !done)
    return fail(done);

  std::vector<named_shape> tensors;
  for (auto& tensor : plan_tensors(config))
    tensors.push_back({tensor.name, tensor.shape});
  add_mtp_layers(config, tensors);
  if (shards <= 1)
    return write_shard(directory / "model.safetensors", tensors, seed, type);

  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = 0;
  std::size_t total = 0;
  std::vector<planned_shard> planned(shards);
  for (std::size_t shard = 0; shard < shards; ++shard) {
    std::array<char, 64> name{};
    std::snprintf(name.data(), name.size(), "model-%05zu-of-%05zu.safetensors", shard + 1, shards);
    planned[shard].file = name.data();
    for (std::size_t i = shard; i < tensors.size(); i += shards) {
      planned[shard].tensors.push_back(tensors[i]);
      index["weight_map"][tensors[i].name] = planned[shard].file;
      total += elements_of(tensors[i]) * kernels::size_of(type);
    }
  }
  if (auto done = write_shards(directory, planned, seed, type, threads); !done)
    return done;
  index["metadata"]["total_size"] = total;
  return write_text(directory / "model.safetensors.index.json", index.dump(2) + "\n");
}

} // namespace rollcast
