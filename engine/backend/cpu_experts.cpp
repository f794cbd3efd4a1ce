#include "engine/backend/cpu_experts.hpp"

#include "engine/backend/cpu_ops.hpp"
#include "kernels/gemm.hpp"
#include "kernels/route.hpp"

#include <algorithm>

namespace rollcast {

using namespace kernels;

result<cpu_experts> cpu_experts::make(const model_config& config, arithmetic how,
                                      std::size_t rows_max) {
  cpu_experts out;
  out.config_ = config.experts;
  out.hidden_ = config.hidden;
  out.how_ = how;
  const std::size_t count = config.experts.count;
  if (count == 0)
    return out;
  std::size_t size = 0;
  const auto place = [&size](std::size_t& offset, std::size_t bytes) {
    offset = size;
    size += (bytes + 127) / 64 * 64; // a spare line, so that a kernel may prefetch past the end
  };
  const std::size_t slots = rows_max * config.experts.per_token;
  const std::size_t inner = config.experts.intermediate;
  // Every expert's rows begin on a line of their own.
  const std::size_t widest = std::max(config.hidden, inner);
  const std::size_t gathered = packed_rows_bytes(how, slots, widest) + 64 * std::min(count, slots);
  place(out.shares_, count * sizeof(share));
  place(out.logits_, rows_max * count * sizeof(float));
  place(out.weights_, slots * sizeof(float));
  place(out.ids_, slots * sizeof(std::uint32_t));
  place(out.places_, slots * sizeof(std::uint32_t));
  place(out.row_at_, slots * sizeof(std::uint32_t));
  place(out.next_, count * sizeof(std::uint32_t));
  place(out.gate_up_, slots * 2 * inner * sizeof(float));
  place(out.gated_, slots * inner * sizeof(float));
  place(out.outputs_, slots * config.hidden * sizeof(float));
  const std::size_t shared = config.experts.shared * inner;
  if (shared != 0) {
    place(out.shared_gate_up_, rows_max * 2 * shared * sizeof(float));
    place(out.shared_gated_, rows_max * shared * sizeof(float));
    place(out.shared_out_, rows_max * config.hidden * sizeof(float));
  }
  const std::size_t all_rows =
    packed_rows_bytes(arithmetic::f32, rows_max, std::max(config.hidden, shared));
  place(out.packed_, std::max(gathered, all_rows));
  auto memory = aligned_buffer::make(size);
  if (!memory)
    return fail(memory);
  out.memory_ = std::move(*memory);
  return out;
}

/// Chooses and weighs the experts of every row, in f32 in either arithmetic.
void cpu_experts::route(thread_pool& pool, const layer_weights& layer, const float* x,
                        std::size_t rows) {
  const auto rows_in = pack_shared(pool, x, hidden_, rows, hidden_, arithmetic::f32, packed());
  multiply_shared(pool, {layer.router, rows_in, logits(), config_.count, nullptr, false});
  const float* const bias = config_.choice_bias ? layer.choice_bias.data() : nullptr;
  const route_args args{logits(),
                        config_.count,
                        config_.count,
                        config_.per_token,
                        config_.score,
                        config_.normalise,
                        ids(),
                        weights(),
                        bias,
                        config_.groups,
                        config_.groups_kept,
                        config_.scaling};
  pool.run(rows, grain_for(8.0 * static_cast<double>(config_.count)),
           [&](std::size_t begin, std::size_t end, std::size_t) { route_cpu(args, begin, end); });
}

/// Gives every slot its place: by expert, and within an expert by row.
void cpu_experts::plan(std::size_t rows) {
  const std::size_t slots = rows * config_.per_token;
  std::fill_n(next(), config_.count, 0u);
  for (std::size_t i = 0; i < slots; ++i)
    ++next()[ids()[i]];
  active_ = 0;
  std::uint32_t first = 0;
  std::size_t wide = 0;
  std::size_t narrow = 0;
  for (std::uint32_t e = 0; e < config_.count; ++e) {
    const std::uint32_t count = next()[e];
    next()[e] = first;
    if (count == 0)
      continue;
    at<share>(shares_)[active_++] = {e, first, count, wide, narrow};
    first += count;
    wide += packed_rows_bytes(how_, count, hidden_);
    narrow += packed_rows_bytes(how_, count, config_.intermediate);
  }
  for (std::size_t i = 0; i < slots; ++i) {
    const std::uint32_t place = next()[ids()[i]]++;
    places()[i] = place;
    row_at()[place] = static_cast<std::uint32_t>(i / config_.per_token);
  }
}

/// One matrix of every expert against its rows, which are packed: (expert, panel) pairs are shared.
void cpu_experts::multiply(thread_pool& pool, const layer_weights& layer, bool down) {
  const std::size_t k = down ? config_.intermediate : hidden_;
  const std::size_t n = down ? hidden_ : 2 * config_.intermediate;
  float* const y = down ? outputs() : gate_up();
  const std::size_t panels = panel_count(n);
  const auto all = shares();
  const double rows =
    static_cast<double>(all.back().first + all.back().rows) / static_cast<double>(all.size());
  const std::size_t part = std::max<std::size_t>(1, all.size() * panels / (pool.size() * 8));
  pool.run(all.size() * panels, std::min(std::max(grain_for(panel_ns(rows, k)), part), panels),
           [&](std::size_t begin, std::size_t end, std::size_t) {
             while (begin < end) {
               const auto& s = all[begin / panels];
               const std::size_t panel = begin % panels;
               const std::size_t last = std::min(panels, panel + (end - begin));
               const auto& expert = layer.experts[s.expert];
               gemm_cpu({down ? expert.down : expert.gate_up,
                         {packed() + (down ? s.narrow_at : s.wide_at), s.rows, k, how_},
                         y + s.first * n,
                         n,
                         nullptr,
                         false},
                        panel, last);
               begin += last - panel;
             }
           });
}

/// The experts that every row has: one FFN of their width together.
void cpu_experts::run_shared(thread_pool& pool, const layer_weights& layer, const float* x,
                             std::size_t rows) {
  const std::size_t dim = config_.shared * config_.intermediate;
  const auto wide = pack_shared(pool, x, hidden_, rows, hidden_, how_, packed());
  multiply_shared(pool, {layer.shared_gate_up, wide, shared_gate_up(), 2 * dim, nullptr, false});
  silu_mul_shared(pool, shared_gate_up(), shared_gated(), rows, dim);
  const auto narrow = pack_shared(pool, shared_gated(), dim, rows, dim, how_, packed());
  multiply_shared(pool, {layer.shared_down, narrow, shared_out(), hidden_, nullptr, false});
}

void cpu_experts::run(thread_pool& pool, const layer_weights& layer, const float* x,
                      std::size_t rows, float* y) {
  if (rows == 0)
    return;
  route(pool, layer, x, rows);
  plan(rows);
  const std::size_t inner = config_.intermediate;
  const std::size_t slots = rows * config_.per_token;
  const auto all = shares();
  const double share_rows = static_cast<double>(slots) / static_cast<double>(all.size());
  // Packing is a small part of the work, so an expert's rows are one item.
  pool.run(all.size(), grain_for(0.3 * share_rows * static_cast<double>(hidden_)),
           [&](std::size_t begin, std::size_t end, std::size_t) {
             for (std::size_t i = begin; i < end; ++i) {
               const packed_rows to{packed() + all[i].wide_at, all[i].rows, hidden_, how_};
               pack_rows_of(x, hidden_, row_at() + all[i].first, to, 0,
                            row_tile_count(how_, to.rows));
             }
           });
  multiply(pool, layer, false);
  silu_mul_shared(pool, gate_up(), gated(), slots, inner);
  pool.run(all.size(), grain_for(0.3 * share_rows * static_cast<double>(inner)),
           [&](std::size_t begin, std::size_t end, std::size_t) {
             for (std::size_t i = begin; i < end; ++i) {
               const packed_rows to{packed() + all[i].narrow_at, all[i].rows, inner, how_};
               pack_rows(gated() + all[i].first * inner, inner, to, 0,
                         row_tile_count(how_, to.rows));
             }
           });
  multiply(pool, layer, true);
  const bool shared = config_.shared != 0;
  if (shared)
    run_shared(pool, layer, x, rows);
  const combine_args sum{
    outputs(), places(), weights(), config_.per_token, y, hidden_, shared ? shared_out() : nullptr};
  pool.run(rows,
           grain_for(0.3 * static_cast<double>(config_.per_token) * static_cast<double>(hidden_)),
           [&](std::size_t begin, std::size_t end, std::size_t) { combine_cpu(sum, begin, end); });
}

void cpu_experts::write_ids(std::size_t rows, std::byte* to, std::size_t stride,
                            std::uint32_t id_bytes) const noexcept {
  const std::uint32_t* id = ids();
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t slot = 0; slot < config_.per_token; ++slot, ++id)
      for (std::uint32_t byte = 0; byte < id_bytes; ++byte)
        to[row * stride + slot * id_bytes + byte] = static_cast<std::byte>(*id >> (8 * byte));
}

} // namespace rollcast
