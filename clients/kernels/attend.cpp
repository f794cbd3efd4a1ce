#include "clients/kernels/checks.hpp"
#include "clients/kernels/device.hpp"
#include "clients/kernels/rollcast_kernels.h"
#include "kernels/attention.hpp"
#include "kernels/rope.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace rollcast::capi {

namespace {

/// Rows that are attended at once, whole sequences apart: it bounds the scratch memory.
constexpr std::size_t rows_at_once = 8192;

/// Positions of a KV block here. Every block size gives the same bits.
constexpr std::size_t block_tokens = kernels::kv_group;

result<void> check(const rollcast_attention& how) {
  const auto bad = [](const std::string& what) { return fail(errc::bad_config, what); };
  if (how.kv_heads == 0 || how.heads == 0 || how.heads % how.kv_heads != 0)
    return bad(std::to_string(how.heads) + " heads and " + std::to_string(how.kv_heads)
               + " kv heads: the first must be a multiple of the second");
  if (how.head_dim == 0 || how.head_dim % 16 != 0 || how.head_dim > 256)
    return bad("head_dim is " + std::to_string(how.head_dim)
               + ": it must be a multiple of 16, at most 256");
  if ((how.q_norm != nullptr || how.k_norm != nullptr) && !(how.eps > 0))
    return bad("eps is " + std::to_string(how.eps) + ": it must be above 0");
  if (how.cos_sin == nullptr || (how.lengths == nullptr && how.sequences > 0))
    return bad("cos_sin or lengths is NULL");
  for (std::size_t i = 0; i < how.sequences; ++i)
    if (how.lengths[i] == 0 || how.lengths[i] > how.positions)
      return bad("sequence " + std::to_string(i) + " has " + std::to_string(how.lengths[i])
                 + " tokens: 1 to " + std::to_string(how.positions)
                 + " are possible with this rotary table");
  return {};
}

/// The sequences of one pass, as the kernels want them.
struct pass_plan {
  std::vector<std::uint32_t> blocks; ///< Of all sequences; each has its own, in order.
  std::vector<kernels::row_place> places;
  std::vector<kernels::attention_sequence> sequences;
  std::vector<kernels::attention_item> items;
  std::size_t rows = 0;

  void make(std::span<const std::uint32_t> lengths, std::size_t kv_heads);
};

void pass_plan::make(std::span<const std::uint32_t> lengths, std::size_t kv_heads) {
  std::size_t block_count = 0;
  for (const std::uint32_t length : lengths)
    block_count += (length + block_tokens - 1) / block_tokens;
  blocks.resize(block_count);
  std::iota(blocks.begin(), blocks.end(), 0u);
  places.clear();
  sequences.clear();
  rows = 0;
  std::size_t first_block = 0;
  for (const std::uint32_t length : lengths) {
    sequences.push_back({blocks.data() + first_block, static_cast<std::uint32_t>(rows), length, 0});
    for (std::uint32_t at = 0; at < length; ++at)
      places.push_back({at, blocks[first_block + at / block_tokens]});
    rows += length;
    first_block += (length + block_tokens - 1) / block_tokens;
  }
  items.resize(kernels::attention_items_max(lengths.size(), rows, kv_heads));
  items.resize(kernels::plan_attention(sequences.data(), sequences.size(), kv_heads, items.data()));
}

/// Attends the sequences of `plan`, whose rows begin at `qkv` and `out`.
result<void> attend(device& shared, const rollcast_attention& how, const pass_plan& plan,
                    const float* qkv, float* out) {
  const std::size_t q_width = how.heads * how.head_dim;
  const std::size_t width = q_width + 2 * how.kv_heads * how.head_dim;
  auto rotated = shared.scratch(device::use::qkv, plan.rows * width * sizeof(float));
  if (!rotated)
    return fail(rotated);
  auto* const rows = reinterpret_cast<float*>(*rotated);
  kernels::kv_layout kv{nullptr, block_tokens, how.kv_heads, how.head_dim, kernels::dtype::f32};
  auto cache = shared.scratch(device::use::kv, plan.blocks.size() * kv.block_bytes());
  if (!cache)
    return fail(cache);
  kv.data = *cache;
  const kernels::qkv_rope_args rope{
    rows,       width,   how.heads,   how.kv_heads,       how.q_norm,
    how.k_norm, how.eps, how.cos_sin, plan.places.data(), kv};
  auto& pool = shared.pool();
  pool.run(plan.rows, 16, [&](std::size_t begin, std::size_t end, std::size_t) {
    std::memcpy(rows + begin * width, qkv + begin * width, (end - begin) * width * sizeof(float));
    kernels::qkv_rope_append_cpu(rope, begin, end);
  });
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(how.head_dim)));
  const kernels::attention_args args{rows,      width, out, q_width,
                                     how.heads, scale, kv,  plan.sequences.data()};
  pool.run(plan.items.size(), 1, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t item = begin; item < end; ++item)
      kernels::attention_cpu(args, plan.items[item]);
  });
  return {};
}

result<void> attend_all(device& shared, const rollcast_attention& how, const float* qkv,
                        float* out) {
  if (const auto ok = check(how); !ok)
    return ok;
  if (const auto ok = check_machine(); !ok)
    return ok;
  if (how.sequences > 0 && (qkv == nullptr || out == nullptr))
    return fail(errc::bad_config, "qkv or out is NULL");
  const std::size_t q_width = how.heads * how.head_dim;
  const std::size_t width = q_width + 2 * how.kv_heads * how.head_dim;
  const std::span<const std::uint32_t> lengths{how.lengths, how.sequences};
  pass_plan plan;
  for (std::size_t begin = 0; begin < lengths.size();) {
    std::size_t end = begin;
    for (std::size_t rows = 0;
         end < lengths.size() && (end == begin || rows + lengths[end] <= rows_at_once); ++end)
      rows += lengths[end];
    plan.make(lengths.subspan(begin, end - begin), how.kv_heads);
    if (const auto done = attend(shared, how, plan, qkv, out); !done)
      return done;
    qkv += plan.rows * width;
    out += plan.rows * q_width;
    begin = end;
  }
  return {};
}

result<void> fill_table(const rollcast_rope* rope, std::size_t positions, float* cos_sin) {
  using kernels::rope_scaling;
  if (rope == nullptr || (cos_sin == nullptr && positions > 0))
    return fail(errc::bad_config, "rope or cos_sin is NULL");
  if (rope->head_dim == 0 || rope->head_dim % 2 != 0)
    return fail(errc::bad_config,
                "head_dim is " + std::to_string(rope->head_dim) + ": it must be even");
  if (rope->scaling < 0 || rope->scaling > static_cast<int>(rope_scaling::llama3))
    return fail(errc::bad_config, "scaling is " + std::to_string(rope->scaling)
                                    + ": 0 (none), 1 (linear) and 2 (llama3) exist");
  if (!(rope->theta > 1) || !(rope->factor > 0) || positions >= (std::size_t{1} << 31))
    return fail(errc::bad_config, "theta must be above 1, factor above 0, positions below 2^31");
  kernels::rope_table({rope->head_dim, rope->theta, static_cast<rope_scaling>(rope->scaling),
                       rope->factor, rope->low_freq_factor, rope->high_freq_factor,
                       rope->original_max_position},
                      positions, cos_sin);
  return {};
}

} // namespace

} // namespace rollcast::capi

using rollcast::capi::device;

int rollcast_attend(const rollcast_attention* how, const float* qkv, float* out) {
  return rollcast::capi::call("rollcast_attend", [&](device& shared) -> rollcast::result<void> {
    if (how == nullptr)
      return rollcast::fail(rollcast::errc::bad_config, "how is NULL");
    return rollcast::capi::attend_all(shared, *how, qkv, out);
  });
}

int rollcast_rope_table(const rollcast_rope* rope, size_t positions, float* cos_sin) {
  return rollcast::capi::call("rollcast_rope_table", [&](device&) {
    return rollcast::capi::fill_table(rope, positions, cos_sin);
  });
}
