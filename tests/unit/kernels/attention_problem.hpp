#pragma once

#include "kernels/attention.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

namespace rollcast::test {

/// The shape of an attention problem.
struct attention_shape {
  std::size_t heads = 6;
  std::size_t kv_heads = 2;
  std::size_t head_dim = 64;
  kernels::dtype type = kernels::dtype::f32;
  std::size_t latent_dim = 0; ///< Values are so many first dimensions of the keys; one kv head.
  std::size_t shares = 1;
};

/// One sequence with its q, k and v, and a paged cache whose blocks lie in a shuffled order and
/// which is full of NaN wherever no key or value has been stored.
class attention_problem {
public:
  attention_problem(attention_shape shape, std::size_t length, std::size_t block_tokens,
                    std::uint64_t seed, std::uint64_t layout_seed = 1)
    : shape{shape}, length{length}, q{pattern(length * shape.heads * shape.head_dim, seed, 2.0f)},
      k{pattern(length * shape.kv_heads * shape.head_dim, seed + 1, 2.0f)},
      v{pattern(length * shape.kv_heads * shape.head_dim, seed + 2, 2.0f)} {
    kv.block_tokens = block_tokens;
    kv.kv_heads = shape.kv_heads;
    kv.head_dim = shape.head_dim;
    kv.type = shape.type;
    kv.latent_dim = shape.latent_dim;
    const std::size_t blocks = (length + block_tokens - 1) / block_tokens;
    table.resize(blocks);
    std::iota(table.begin(), table.end(), 0u);
    prng random{layout_seed};
    for (std::size_t i = blocks; i > 1; --i)
      std::swap(table[i - 1], table[random.below(i)]);
    memory.reset(static_cast<std::byte*>(std::aligned_alloc(64, blocks * kv.block_bytes())));
    kv.data = memory.get();
    std::memset(kv.data, 0xff, blocks * kv.block_bytes()); // All ones is a NaN in f32 and bf16.
  }

  /// Stores keys and values of positions [begin, end).
  void append(std::size_t begin, std::size_t end) {
    for (std::size_t p = begin; p < end; ++p)
      for (std::size_t h = 0; h < shape.kv_heads; ++h) {
        const std::size_t slot = p % kv.block_tokens, lane = slot % kernels::kv_group;
        std::byte* tile = kv.data + kv.k_offset(table[p / kv.block_tokens], slot, h);
        for (std::size_t d = 0; d < shape.head_dim; ++d) {
          const std::size_t from = (p * shape.kv_heads + h) * shape.head_dim + d;
          put(tile, d * kernels::kv_group + lane, k[from]);
          if (shape.latent_dim == 0)
            put(tile + kv.tile_bytes(), lane * shape.head_dim + d, v[from]);
        }
      }
  }

  /// Attention of rows [begin, end) in one sequence of one call, cut into items of `item_rows`.
  /// The other rows of `out` are left as they are.
  void attend(std::size_t begin, std::size_t end, std::size_t item_rows, std::vector<float>& out) {
    const kernels::attention_sequence sequence{table.data(), static_cast<std::uint32_t>(begin),
                                               static_cast<std::uint32_t>(end - begin),
                                               static_cast<std::uint32_t>(begin)};
    const std::size_t stride = shape.heads * shape.head_dim;
    const std::size_t out_stride = shape.heads * kv.value_dim();
    out.resize(length * out_stride);
    const kernels::attention_args args{q.data(), stride, out.data(), out_stride,  shape.heads,
                                       scale(),  kv,     &sequence,  shape.shares};
    for (std::uint32_t h = 0; h < shape.kv_heads * shape.shares; ++h)
      for (std::size_t row = 0; row < end - begin; row += item_rows)
        kernels::attention_cpu(
          args, {0, h, static_cast<std::uint32_t>(row),
                 static_cast<std::uint32_t>(std::min(item_rows, end - begin - row))});
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_dim)); }

  attention_shape shape;
  std::size_t length;
  std::vector<float> q, k, v;
  std::vector<std::uint32_t> table;
  kernels::kv_layout kv;

private:
  struct release {
    void operator()(std::byte* p) const { std::free(p); }
  };

  void put(std::byte* tile, std::size_t at, float x) const {
    if (shape.type == kernels::dtype::f32)
      reinterpret_cast<float*>(tile)[at] = x;
    else
      reinterpret_cast<std::uint16_t*>(tile)[at] = kernels::round_bf16(x);
  }

  std::unique_ptr<std::byte, release> memory;
};

} // namespace rollcast::test
