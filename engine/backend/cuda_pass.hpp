#pragma once

#include "engine/backend/cuda_buffers.hpp"
#include "engine/backend/cuda_kv.hpp"
#include "engine/backend/cuda_weights.hpp"
#include "engine/backend/product_library.hpp"
#include "engine/model/config.hpp"
#include "kernels/cuda/runtime.hpp"

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

namespace rollcast {

/// What launches of a forward pass depend on besides addresses: one shape, one graph.
struct cuda_pass_shape {
  std::uint32_t rows = 0;
  std::uint32_t logit_rows = 0;
  std::uint32_t items = 0; ///< Of attention, at most.
  bool copies = false;     ///< Some slots are copied.
  friend auto operator<=>(const cuda_pass_shape&, const cuda_pass_shape&) = default;
};

/// The next larger number of rows that passes are padded to: 1, 2, 4, 8, then multiples of 8 up to
/// 64, of 32 up to 256, of 128. Few enough for a graph each, near enough that padding costs little:
/// the products of up to 64 rows read the weights once, whatever their number.
std::uint32_t padded_rows(std::uint32_t rows) noexcept;

/// What passes are made of; all of it stays where it is but the weights.
struct cuda_model {
  const model_config& config;
  const cuda_weights& weights;
  const cuda_buffers& buffers;
  const cuda_kv& kv;
  const product_library* products = nullptr; ///< Null: products are exact.
};

/// Queues a whole pass, from `buffers.tokens` to `buffers.logits`: launches and nothing else, so
/// that it can be captured.
kernels::cuda::device_status run_pass(const cuda_model& model, const cuda_pass_shape& shape,
                                      kernels::cuda::stream_handle stream);

/// Graphs of passes by shape. The first pass of a shape is queued kernel by kernel, which also has
/// the driver load what it needs, the second is captured. After a change of weights the first pass
/// of a shape is captured again and the graph takes over its arguments.
class cuda_graphs {
public:
  /// Queues a pass. @param weights_serial  Another number for other weights.
  kernels::cuda::device_status run(const cuda_model& model, const cuda_pass_shape& shape,
                                   std::uint64_t weights_serial,
                                   kernels::cuda::stream_handle stream);

  std::size_t captured() const noexcept { return captured_; } ///< So often in all.
  std::size_t launched() const noexcept { return launched_; }

private:
  struct entry {
    std::optional<kernels::cuda::graph> graph;
    std::uint64_t serial = 0;
  };

  kernels::cuda::device_status capture(const cuda_model& model, const cuda_pass_shape& shape,
                                       entry& into, kernels::cuda::stream_handle stream);

  std::map<cuda_pass_shape, entry> entries_;
  std::size_t captured_ = 0;
  std::size_t launched_ = 0;
};

} // namespace rollcast
