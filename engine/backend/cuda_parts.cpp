#include "engine/backend/cuda_parts.hpp"

#include "engine/backend/cublaslt.hpp"
#include "engine/backend/cuda_error.hpp"
#include "engine/backend/cuda_pass.hpp"
#include "engine/model/footprint.hpp"
#include "kernels/cuda/attention.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace rollcast {

namespace gpu = kernels::cuda;

namespace {

constexpr std::uint32_t block_tokens_max = 65536;
/// Of each staging buffer of KV: long against a copy's start, short against what waits for it.
constexpr std::size_t kv_stage_bytes = std::size_t{32} << 20;
/// Rows of partial results of attention: at 32 heads of 128 about 130 MiB, with which 64 responses
/// of 64 thousand positions have all their splits done side by side.
constexpr std::size_t partial_rows_max = 8192;

result<void> bad(const std::string& what) {
  return fail(errc::bad_config, what);
}

result<void> check(const cuda_backend_options& options) {
  const auto wrong = [](const std::string& what, std::uint64_t value, const std::string& must) {
    return bad(what + " is " + std::to_string(value) + ": it must be " + must);
  };
  if (options.block_tokens == 0 || options.block_tokens % kernels::kv_group != 0
      || options.block_tokens > block_tokens_max)
    return wrong("block-tokens", options.block_tokens,
                 "a multiple of " + std::to_string(kernels::kv_group) + ", at most "
                   + std::to_string(block_tokens_max));
  if (options.rows_max == 0 || options.logit_rows_max == 0)
    return wrong("rows-max", options.rows_max, "at least 1");
  return {};
}

/// Refuses a shape that the kernels do not compute.
result<void> check(const model_config& c) {
  const auto wrong = [](const std::string& what, std::size_t value, const std::string& must) {
    return bad("the model's " + what + " is " + std::to_string(value) + ": a GPU computes " + must
               + "; use --device cpu");
  };
  if (c.head_dim != 64 && c.head_dim != 128)
    return wrong("head_dim", c.head_dim, "64 and 128");
  if (c.experts.count != 0 || c.latent.rank != 0 || c.rope.head_dim != c.head_dim)
    return bad("the model is a " + std::string{class_name(c.family)}
               + ": a GPU computes models without experts, latent attention and partial rotation; "
                 "use --device cpu");
  if (c.hidden % 8 != 0 || c.hidden > 32768)
    return wrong("hidden_size", c.hidden, "multiples of 8 up to 32768");
  if (c.intermediate % 8 != 0)
    return wrong("intermediate_size", c.intermediate, "multiples of 8");
  if (c.heads / c.kv_heads > 64)
    return wrong("heads of one kv head", c.heads / c.kv_heads, "up to 64");
  if (c.vocabulary > (std::size_t{1} << 20))
    return wrong("vocab_size", c.vocabulary, "up to 1048576");
  return {};
}

device_shape shape_of(const model_config& config, const cuda_backend_options& options) {
  device_shape shape;
  shape.vocabulary = static_cast<std::uint32_t>(config.vocabulary);
  shape.positions_max = static_cast<std::uint32_t>(config.max_positions);
  if (options.positions_max != 0)
    shape.positions_max = std::min(shape.positions_max, options.positions_max);
  shape.kv_blocks = options.kv_blocks;
  shape.block_tokens = options.block_tokens;
  shape.rows_max = options.rows_max;
  shape.logit_rows_max = std::min(options.logit_rows_max, options.rows_max);
  shape.kv_group_bytes =
    kv_block_bytes(config, kernels::dtype::bf16, static_cast<std::uint32_t>(kernels::kv_group));
  return shape;
}

cuda_buffer_sizes sizes_of(const model_config& config, const device_shape& shape,
                           std::uint32_t graph_rows_max) {
  const auto padded = [graph_rows_max](std::uint32_t rows) {
    return std::max(rows, padded_rows(std::min(rows, graph_rows_max)));
  };
  cuda_buffer_sizes sizes;
  sizes.rows = padded(shape.rows_max);
  sizes.logit_rows = std::max(padded(shape.logit_rows_max), padded_rows(shape.logit_rows_max));
  sizes.positions = shape.positions_max;
  sizes.block_tokens = shape.block_tokens;
  const std::size_t splits = (sizes.positions + gpu::attention_split - 1) / gpu::attention_split;
  sizes.attention = gpu::attention_plan_bound(sizes.rows, sizes.rows, sizes.positions,
                                              config.heads / config.kv_heads,
                                              std::min(partial_rows_max, sizes.rows * splits));
  return sizes;
}

/// What a profile that is not exact multiplies with. @pre the device is current.
result<std::shared_ptr<const product_library>> find_products(const numerics_profile& profile,
                                                             const cuda_backend_options& options) {
  if (options.products)
    return options.products;
  const std::string needs = "numerics profile " + std::string{profile.name} + " needs cuBLASLt: ";
  const auto info = gpu::describe_device(options.device);
  if (!info)
    return device_failed(info, "asking what GPU " + std::to_string(options.device) + " is");
  if (info->emulated)
    return fail(errc::bad_config, needs + "the emulated device does not run it");
  std::string why_not;
  std::shared_ptr<const product_library> found = cublaslt::find(why_not);
  if (!found)
    return fail(errc::bad_config, needs + why_not + "; leave --numerics out for exact products");
  return found;
}

std::string mib(std::uint64_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

/// Bytes that are free for KV and the next epoch, beside weights and buffers that are there by now.
result<std::uint64_t> memory_left(const model_config& config, const cuda_buffer_sizes& sizes,
                                  const cuda_backend_options& options) {
  const std::string doing = "asking what is free on GPU " + std::to_string(options.device);
  const auto free = gpu::free_memory();
  if (!free)
    return device_failed(free, doing);
  if (options.sharers <= 1)
    return *free;
  const auto info = gpu::describe_device(options.device);
  if (!info)
    return device_failed(info, doing);
  return std::min<std::uint64_t>(
    *free, cuda_memory_share(info->memory_bytes, options.sharers,
                             cuda_weight_bytes(config) + cuda_buffers::bytes_of(config, sizes)));
}

result<void> add_stages(cuda_parts& parts) {
  const std::string doing = "making pinned memory for GPU " + std::to_string(parts.device);
  for (auto& stage : parts.stages) {
    auto memory = gpu::pinned_buffer::allocate(parts.buffers.step_bytes());
    if (!memory)
      return device_failed(memory, doing);
    auto sent = gpu::event::create();
    if (!sent)
      return device_failed(sent, doing);
    stage.memory = std::move(*memory);
    stage.sent.emplace(std::move(*sent));
  }
  auto answers = gpu::pinned_buffer::allocate(parts.buffers.answer_bytes());
  if (!answers)
    return device_failed(answers, doing);
  parts.answers = std::move(*answers);
  return {};
}

} // namespace

result<void> find_gpu(std::uint32_t device) {
  const auto count = gpu::device_count();
  if (!count)
    return device_failed(count, "asking for GPUs");
  if (*count == 0)
    return bad("no GPU: " + gpu::why_no_device() + "; use --device cpu");
  if (device >= *count)
    return bad("there is no GPU " + std::to_string(device) + ": the driver shows "
               + std::to_string(*count) + ", numbered from 0");
  const auto info = gpu::describe_device(device);
  if (!info)
    return device_failed(info, "asking what GPU " + std::to_string(device) + " is");
  return check_gpu(device, *info);
}

result<void> check_gpu(std::uint32_t number, const gpu::device_info& info) {
  const auto wrong = [&](const std::string& what) {
    return bad("GPU " + std::to_string(number) + ", " + info.name + ", " + what
               + "; use another GPU, or --device cpu");
  };
  if (!info.emulated && info.architecture < gpu::architecture_min)
    return wrong("is sm_" + std::to_string(info.architecture) + ": the kernels need sm_"
                 + std::to_string(gpu::architecture_min) + " or newer");
  if (info.shared_bytes < gpu::shared_bytes_needed)
    return wrong("gives a block " + std::to_string(info.shared_bytes >> 10)
                 + " KiB of shared memory: the kernels need "
                 + std::to_string(gpu::shared_bytes_needed >> 10));
  return {};
}

std::uint64_t cuda_memory_share(std::uint64_t memory_bytes, std::uint32_t sharers,
                                std::uint64_t own_bytes) noexcept {
  const std::uint64_t share = memory_bytes / std::max(1u, sharers);
  return share > own_bytes ? share - own_bytes : 0;
}

result<std::uint32_t> cuda_kv_blocks(const model_config& config, const device_shape& shape,
                                     std::uint32_t batch_max, std::uint64_t free_bytes,
                                     std::uint64_t weight_bytes) {
  const std::uint64_t usable = free_bytes / 10 * 9;
  const auto block_bytes = kv_block_bytes(config, kernels::dtype::bf16, shape.block_tokens);
  const std::uint64_t context_blocks =
    (std::uint64_t{shape.positions_max} + shape.block_tokens - 1) / shape.block_tokens;
  const std::uint64_t affordable =
    usable > weight_bytes ? (usable - weight_bytes) / block_bytes : 0;
  if (affordable < context_blocks)
    return fail(
      errc::bad_config,
      "one context of " + std::to_string(shape.positions_max) + " tokens takes "
        + mib(context_blocks * block_bytes) + " of KV and the next epoch of weights "
        + mib(weight_bytes) + ", but " + mib(usable)
        + " are left on the GPU (nine tenths of what is free, or of this worker's share): take a "
          "larger GPU or fewer workers on it, or give --kv-blocks for fewer tokens");
  return static_cast<std::uint32_t>(
    std::min<std::uint64_t>({affordable, 2 * context_blocks * batch_max, UINT32_MAX - 1}));
}

result<cuda_parts> make_cuda_parts(const model_config& config, const tensor_source& tensors,
                                   const numerics_profile& profile,
                                   const cuda_backend_options& options,
                                   const prepare_options& prepare) {
  if (auto ok = check(options); !ok)
    return fail(ok);
  if (auto ok = check(config); !ok)
    return fail(ok);
  if (auto ok = find_gpu(options.device); !ok)
    return fail(ok);
  const std::string doing = "opening GPU " + std::to_string(options.device);
  if (auto ok = gpu::use_device(options.device); !ok)
    return device_failed(ok, doing);
  if (auto ok = gpu::find_code(); !ok)
    return fail(errc::bad_config, doing + ": " + ok.error().what
                                    + "; build with its number in ROLLCAST_CUDA_ARCHITECTURES");
  auto stream = gpu::stream::create();
  if (!stream)
    return device_failed(stream, doing);
  cuda_parts parts{options.device, std::move(*stream), nullptr, nullptr, shape_of(config, options)};
  parts.sizes = sizes_of(config, parts.shape, options.graph_rows_max);
  if (!profile.exact) {
    auto products = find_products(profile, options);
    if (!products)
      return fail(products);
    parts.products = std::move(*products);
    parts.sizes.library_workspace = parts.products->workspace_bytes();
  }
  auto weights = load_cuda_weights(options.device, config, tensors, nullptr, prepare);
  if (!weights)
    return fail(weights);
  parts.weights = std::move(*weights);
  auto buffers = cuda_buffers::make(config, parts.sizes, parts.stream.handle());
  if (!buffers)
    return fail(buffers);
  parts.buffers = std::move(*buffers);
  if (parts.shape.kv_blocks == 0) {
    const auto left = memory_left(config, parts.sizes, options);
    if (!left)
      return fail(left);
    const auto blocks =
      cuda_kv_blocks(config, parts.shape, options.batch_max, *left, cuda_weight_bytes(config));
    if (!blocks)
      return fail(blocks);
    parts.shape.kv_blocks = *blocks;
  }
  auto kv = cuda_kv::make(config, parts.shape,
                          options.kv_stage_bytes != 0 ? options.kv_stage_bytes : kv_stage_bytes);
  if (!kv)
    return fail(kv);
  parts.kv = std::move(*kv);
  if (auto ok = add_stages(parts); !ok)
    return fail(ok);
  // Keys behind a row's position are read with the others and then masked.
  if (auto ok = parts.kv.fill(options.poison ? 0xff : 0, parts.stream.handle()); !ok)
    return device_failed(ok, doing);
  if (auto ok = parts.stream.synchronize(); !ok)
    return device_failed(ok, doing);
  return parts;
}

} // namespace rollcast
