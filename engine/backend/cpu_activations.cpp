#include "engine/backend/cpu_activations.hpp"

#include "kernels/gemm.hpp"
#include "kernels/sampling.hpp"

#include <algorithm>

namespace rollcast {

result<cpu_activations> cpu_activations::make(const model_config& config,
                                              kernels::arithmetic arithmetic,
                                              const device_shape& shape, std::size_t threads) {
  cpu_activations act;
  std::size_t size = 0;
  const auto place = [&size](std::size_t& offset, std::size_t bytes) {
    offset = size;
    size += (bytes + 127) / 64 * 64; // a spare line, so that a kernel may prefetch past the end
  };
  const std::size_t rows = shape.rows_max;
  const std::size_t logit_rows = shape.logit_rows_max;
  const std::size_t attended = config.attended_width();
  const std::size_t widest = std::max({config.hidden, attended, config.intermediate});
  std::size_t packed = 0;
  for (std::size_t r = 1; r <= rows; ++r)
    packed = std::max(packed, kernels::packed_rows_bytes(arithmetic, r, widest));
  place(act.hidden_, rows * config.hidden * sizeof(float));
  place(act.normed_, rows * config.hidden * sizeof(float));
  place(act.qkv_, rows * config.qkv_width() * sizeof(float));
  place(act.attended_, rows * attended * sizeof(float));
  place(act.gate_up_, rows * 2 * config.intermediate * sizeof(float));
  place(act.gated_, rows * config.intermediate * sizeof(float));
  place(act.gathered_, logit_rows * config.hidden * sizeof(float));
  place(act.logits_, logit_rows * config.vocabulary * sizeof(float));
  place(act.cos_sin_, std::size_t{shape.positions_max} * config.rope.head_dim * sizeof(float));
  place(act.packed_, packed);
  act.scratch_bytes_ = (kernels::sample_scratch_bytes(config.vocabulary) + 127) / 64 * 64;
  place(act.scratch_, threads * act.scratch_bytes_);
  auto memory = aligned_buffer::make(size);
  if (!memory)
    return fail(memory);
  act.memory_ = std::move(*memory);
  act.items_ = std::make_unique<kernels::attention_item[]>(
    kernels::attention_items_max(rows, rows, config.heads));
  return act;
}

} // namespace rollcast
