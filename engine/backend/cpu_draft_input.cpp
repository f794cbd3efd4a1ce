#include "engine/backend/cpu_draft_input.hpp"

#include "engine/backend/cpu_ops.hpp"
#include "engine/base/check.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/rms_norm.hpp"

#include <algorithm>
#include <cstring>

namespace rollcast {

result<cpu_draft_input> cpu_draft_input::make(const model_config& config, kernels::arithmetic how,
                                              std::size_t rows_max) {
  cpu_draft_input out;
  out.config_ = config.draft;
  if (config.draft.kind == draft_kind::none)
    return out;
  out.hidden_ = config.hidden;
  out.eps_ = config.rms_eps;
  out.how_ = how;
  std::size_t size = 0;
  const auto place = [&size](std::size_t& offset, std::size_t bytes) {
    offset = size;
    size += (bytes + 127) / 64 * 64; // a spare line, so that a kernel may prefetch past the end
  };
  const std::size_t widest = std::max(2 * config.hidden, config.draft.state_width);
  std::size_t packed = 0;
  for (std::size_t rows = 1; rows <= rows_max; ++rows)
    packed = std::max(packed, kernels::packed_rows_bytes(how, rows, widest));
  place(out.embedded_, rows_max * config.hidden * sizeof(float));
  place(out.both_, rows_max * 2 * config.hidden * sizeof(float));
  place(out.packed_, packed);
  auto memory = aligned_buffer::make(size);
  if (!memory)
    return fail(memory);
  out.memory_ = std::move(*memory);
  return out;
}

/// Into one half of the rows of `both_`.
void cpu_draft_input::norm(thread_pool& pool, const float* x, std::span<const float> weight,
                           float* y, std::size_t rows) {
  const kernels::rms_norm_args args{x, weight.data(), y, hidden_, hidden_, 2 * hidden_, eps_};
  pool.run(rows, grain_for(0.3 * static_cast<double>(hidden_)),
           [&](std::size_t begin, std::size_t end, std::size_t) {
             kernels::rms_norm_cpu(args, begin, end);
           });
}

void cpu_draft_input::fuse(thread_pool& pool, const model_weights& weights,
                           const tensor_view& embedding, const forward_rows& rows, float* stream) {
  const std::size_t count = rows.tokens.size();
  const auto& draft = weights.draft();
  float* const embedded = at<float>(embedded_);
  const std::size_t row_bytes = hidden_ * kernels::size_of(embedding.type);
  ROLLCAST_CHECK(embedding.shape.size() == 2 && embedding.shape[1] == hidden_);
  for (std::size_t row = 0; row < count; ++row)
    if (config_.mimo && rows.places[row].position == 0)
      std::fill_n(embedded + row * hidden_, hidden_, 0.0f);
    else
      kernels::widen_row_cpu(embedding.bytes.data()
                               + static_cast<std::size_t>(rows.tokens[row]) * row_bytes,
                             embedding.type, hidden_, embedded + row * hidden_);
  const bool eagle = config_.kind == draft_kind::eagle3;
  const std::size_t width = eagle && !rows.own_states ? config_.state_width : hidden_;
  ROLLCAST_CHECK(rows.taken.size() == count * width);
  if (eagle && rows.own_states) {
    std::memcpy(stream, rows.taken.data(), rows.taken.size_bytes());
    return;
  }
  kernels::packed_rows input;
  if (eagle) {
    input = pack_shared(pool, rows.taken.data(), width, count, width, how_, at<std::byte>(packed_));
  } else {
    float* const both = at<float>(both_);
    norm(pool, rows.taken.data(), draft.hidden_norm, both + (config_.mimo ? 0 : hidden_), count);
    norm(pool, embedded, draft.embed_norm, both + (config_.mimo ? hidden_ : 0), count);
    input = pack_shared(pool, both, 2 * hidden_, count, 2 * hidden_, how_, at<std::byte>(packed_));
  }
  multiply_shared(pool, {draft.fuse, input, stream, draft.fuse.n, nullptr, false});
}

kernels::packed_rows cpu_draft_input::first_input(thread_pool& pool, const model_weights& weights,
                                                  const float* stream, std::size_t rows) {
  float* const both = at<float>(both_);
  norm(pool, at<float>(embedded_), weights.layers().front().input_norm, both, rows);
  norm(pool, stream, weights.draft().hidden_norm, both + hidden_, rows);
  return pack_shared(pool, both, 2 * hidden_, rows, 2 * hidden_, how_, at<std::byte>(packed_));
}

} // namespace rollcast
