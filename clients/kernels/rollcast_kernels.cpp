#include "clients/kernels/rollcast_kernels.h"

#include "clients/kernels/checks.hpp"
#include "clients/kernels/device.hpp"
#include "engine/base/hash.hpp"
#include "engine/numerics/profile.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/gemm.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/sampling.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <span>
#include <string>
#include <string_view>

namespace rollcast::capi {

namespace {

using kernels::dtype;

static_assert(static_cast<int>(dtype::f32) == ROLLCAST_F32);
static_assert(static_cast<int>(dtype::bf16) == ROLLCAST_BF16);
static_assert(static_cast<int>(dtype::f16) == ROLLCAST_F16);

constexpr const char* profile_name = "cpu-f32-v1";

/// Rows of one product: 512 keep the packed activations of usual widths in L2 and already run at
/// the FMA rate.
constexpr std::size_t block_rows = 512;

/// Blocks packed before they are multiplied, so that threads have (block, panel) pairs to share
/// where a matrix has few panels.
constexpr std::size_t blocks_at_once = 16;

result<void> bad(const std::string& detail) {
  return fail(errc::bad_config, detail);
}

/// Rows that a thread takes at once, for operations that cost little by the element.
constexpr std::size_t row_grain(std::size_t width) {
  return std::max<std::size_t>(1, 16384 / std::max<std::size_t>(1, width));
}

/// What one product works on; `rows` is at most block_rows * blocks_at_once.
struct product {
  kernels::packed_matrix w;
  const float* x;
  std::size_t rows;
  const float* bias;
  bool accumulate;
  float* y;
};

result<void> multiply(device& shared, const product& p) {
  constexpr auto how = kernels::arithmetic::f32;
  const std::size_t k = p.w.k;
  const std::size_t n = p.w.n;
  const std::size_t blocks = (p.rows + block_rows - 1) / block_rows;
  // A short last block may need more bytes a row, as rows are packed in tiles.
  const std::size_t stride = std::max(kernels::packed_rows_bytes(how, block_rows, k),
                                      kernels::packed_rows_bytes(how, p.rows % block_rows, k));
  auto packed = shared.scratch(device::use::packed_rows, blocks * stride);
  if (!packed)
    return fail(packed);
  const auto rows_of = [&](std::size_t block) {
    return kernels::packed_rows{*packed + block * stride,
                                std::min(block_rows, p.rows - block * block_rows), k, how};
  };
  auto& pool = shared.pool();
  pool.run(blocks, 1, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t block = begin; block < end; ++block) {
      const auto to = rows_of(block);
      kernels::pack_rows(p.x + block * block_rows * k, k, to, 0,
                         kernels::row_tile_count(how, to.rows));
    }
  });
  const std::size_t panels = kernels::panel_count(n);
  const std::size_t grain = std::max<std::size_t>(1, panels * blocks / (pool.size() * 8));
  pool.run(panels * blocks, grain, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t at = begin; at < end;) {
      const std::size_t block = at / panels;
      const std::size_t stop = std::min(end, (block + 1) * panels);
      const kernels::gemm_args args{p.w, rows_of(block), p.y + block * block_rows * n,
                                    n,   p.bias,         p.accumulate};
      kernels::gemm_cpu(args, at - block * panels, stop - block * panels);
      at = stop;
    }
  });
  return {};
}

result<void> linear(device& shared, int type, product p) {
  const auto known = dtype_of(type, true);
  if (!known)
    return fail(known);
  if (const auto ok = check_machine(); !ok)
    return ok;
  if (const auto ok = check_aligned(p.w.data, "packed"); !ok)
    return ok;
  if (p.w.n == 0 || p.w.k == 0)
    return bad("n is " + std::to_string(p.w.n) + " and k " + std::to_string(p.w.k)
               + ": both must be above 0");
  if (p.rows > 0 && (p.x == nullptr || p.y == nullptr))
    return bad("x or y is NULL");
  p.w.type = *known;
  for (std::size_t left = p.rows; left > 0; left -= p.rows) {
    p.rows = std::min(left, block_rows * blocks_at_once);
    if (const auto done = multiply(shared, p); !done)
      return done;
    p.x += p.rows * p.w.k;
    p.y += p.rows * p.w.n;
  }
  return {};
}

/// A checkpoint tensor and the columns that it gets.
struct packing {
  const void* source;
  int source_type;
  std::size_t rows;
  std::size_t k;
  std::size_t column;
  void* out;
  int type;
  std::size_t n;
};

result<void> pack(device& shared, const packing& p) {
  const auto from = dtype_of(p.source_type, false);
  if (!from)
    return fail(from);
  const auto to = dtype_of(p.type, true);
  if (!to)
    return fail(to);
  if (const auto ok = check_aligned(p.out, "out"); !ok)
    return ok;
  if (p.source == nullptr && p.rows > 0)
    return bad("source is NULL");
  if (p.column > p.n || p.rows > p.n - p.column)
    return bad(std::to_string(p.rows) + " rows at column " + std::to_string(p.column)
               + " do not fit in " + std::to_string(p.n) + " columns");
  shared.pool().run(p.rows, kernels::panel_columns,
                    [&](std::size_t begin, std::size_t end, std::size_t) {
                      const auto* source = static_cast<const std::byte*>(p.source)
                                           + begin * p.k * kernels::size_of(*from);
                      kernels::pack_weights(source, *from, end - begin, p.k, p.column + begin,
                                            static_cast<std::byte*>(p.out), *to, p.n);
                    });
  return {};
}

/// Refuses token ids that name no row of the vocabulary.
result<void> check_tokens(std::span<const std::int32_t> tokens, std::size_t vocabulary) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || static_cast<std::size_t>(tokens[i]) >= vocabulary)
      return bad("token " + std::to_string(i) + " is " + std::to_string(tokens[i])
                 + ": ids are 0 to " + std::to_string(vocabulary - 1));
  return {};
}

result<void> embed(device& shared, const void* table, int type, std::size_t vocabulary,
                   std::size_t dim, std::span<const std::int32_t> tokens, float* out) {
  const auto from = dtype_of(type, false);
  if (!from)
    return fail(from);
  if (table == nullptr || (!tokens.empty() && (tokens.data() == nullptr || out == nullptr)))
    return bad("table, tokens or out is NULL");
  if (const auto ok = check_tokens(tokens, vocabulary); !ok)
    return ok;
  const std::size_t row_bytes = dim * kernels::size_of(*from);
  shared.pool().run(
    tokens.size(), row_grain(dim), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t row = begin; row < end; ++row)
        kernels::widen_row_cpu(static_cast<const std::byte*>(table)
                                 + static_cast<std::size_t>(tokens[row]) * row_bytes,
                               *from, dim, out + row * dim);
    });
  return {};
}

result<void> token_logprobs(device& shared, const float* logits, std::size_t vocabulary,
                            const float* temperatures, std::span<const std::int32_t> tokens,
                            float* out) {
  if (const auto ok = check_machine(); !ok)
    return ok;
  if (tokens.empty())
    return {};
  if (logits == nullptr || temperatures == nullptr || tokens.data() == nullptr || out == nullptr)
    return bad("logits, temperatures, tokens or out is NULL");
  if (const auto ok = check_tokens(tokens, vocabulary); !ok)
    return ok;
  for (std::size_t row = 0; row < tokens.size(); ++row)
    if (!(temperatures[row] >= 0) || !std::isfinite(temperatures[row]))
      return bad("temperature " + std::to_string(row) + " is " + std::to_string(temperatures[row])
                 + ": it must be finite and at least 0");
  shared.pool().run(tokens.size(), row_grain(vocabulary),
                    [&](std::size_t begin, std::size_t end, std::size_t) {
                      for (std::size_t row = begin; row < end; ++row)
                        out[row] = kernels::token_logprob_cpu(logits + row * vocabulary, vocabulary,
                                                              temperatures[row], tokens[row]);
                    });
  return {};
}

/// Name of the instruction set in use; set by `use`.
std::atomic<const char*>& chosen_set() {
  static std::atomic<const char*> name{
    kernels::instruction_sets().empty() ? "" : kernels::instruction_sets().front().data()};
  return name;
}

result<void> use(const char* name) {
  if (const auto ok = check_machine(); !ok)
    return ok;
  const std::string_view wanted = name == nullptr ? "" : name;
  if (!kernels::use_instruction_set(wanted)) {
    std::string known;
    for (const auto set : kernels::instruction_sets())
      known += (known.empty() ? "" : ", ") + std::string(set);
    return bad("no instruction set " + std::string(wanted) + " here; there are " + known);
  }
  for (const auto set : kernels::instruction_sets())
    if (wanted.empty() || set == wanted) {
      chosen_set() = set.data();
      break;
    }
  return {};
}

} // namespace

} // namespace rollcast::capi

// -- the interface --------------------------------------------------------------

namespace capi = rollcast::capi;
using capi::device;
using rollcast::result;

uint32_t rollcast_kernels_abi(void) {
  return ROLLCAST_KERNELS_ABI;
}

const char* rollcast_kernels_profile(void) {
  return capi::profile_name;
}

const char* rollcast_kernels_profile_hash(void) {
  static const std::string hash =
    rollcast::to_string(rollcast::find_profile(capi::profile_name)->hash());
  return hash.c_str();
}

const char* rollcast_kernels_error(void) {
  return capi::kept_error();
}

const char* rollcast_kernels_instruction_set(void) {
  return capi::chosen_set();
}

int rollcast_kernels_use_instruction_set(const char* name) {
  return capi::call("rollcast_kernels_use_instruction_set",
                    [&](device&) { return capi::use(name); });
}

int rollcast_kernels_set_threads(uint32_t threads) {
  return capi::call("rollcast_kernels_set_threads", [&](device& shared) -> result<void> {
    if (threads == 0 || threads > 1024)
      return capi::bad("threads is " + std::to_string(threads) + ": it must be 1 to 1024");
    shared.set_threads(threads);
    return {};
  });
}

size_t rollcast_packed_bytes(int dtype, size_t n, size_t k) {
  const auto known = capi::dtype_of(dtype, true);
  return known ? rollcast::kernels::packed_bytes(*known, n, k) : 0;
}

int rollcast_pack_weights(const void* source, int source_dtype, size_t rows, size_t k,
                          size_t column, void* out, int dtype, size_t n) {
  return capi::call("rollcast_pack_weights", [&](device& shared) {
    return capi::pack(shared, {source, source_dtype, rows, k, column, out, dtype, n});
  });
}

int rollcast_linear(const void* packed, int dtype, size_t n, size_t k, const float* x, size_t rows,
                    const float* bias, int accumulate, float* y) {
  return capi::call("rollcast_linear", [&](device& shared) {
    const rollcast::kernels::packed_matrix w{static_cast<const std::byte*>(packed), n, k,
                                             rollcast::kernels::dtype::f32};
    return capi::linear(shared, dtype, {w, x, rows, bias, accumulate != 0, y});
  });
}

int rollcast_rms_norm(const float* x, const float* w, float eps, size_t rows, size_t dim,
                      float* y) {
  return capi::call("rollcast_rms_norm", [&](device& shared) -> result<void> {
    if (const auto ok = capi::check_machine(); !ok)
      return ok;
    if (dim == 0 || !(eps > 0) || w == nullptr || (rows > 0 && (x == nullptr || y == nullptr)))
      return capi::bad("dim and eps must be above 0, and x, w and y not NULL");
    const rollcast::kernels::rms_norm_args args{x, w, y, dim, dim, dim, eps};
    shared.pool().run(rows, capi::row_grain(dim),
                      [&](std::size_t begin, std::size_t end, std::size_t) {
                        rollcast::kernels::rms_norm_cpu(args, begin, end);
                      });
    return {};
  });
}

int rollcast_silu_mul(const float* gate_up, size_t rows, size_t dim, float* out) {
  return capi::call("rollcast_silu_mul", [&](device& shared) -> result<void> {
    if (const auto ok = capi::check_machine(); !ok)
      return ok;
    if (dim == 0 || (rows > 0 && (gate_up == nullptr || out == nullptr)))
      return capi::bad("dim must be above 0, and gate_up and out not NULL");
    const rollcast::kernels::silu_mul_args args{gate_up, 2 * dim, out, dim, dim};
    shared.pool().run(rows, capi::row_grain(dim),
                      [&](std::size_t begin, std::size_t end, std::size_t) {
                        rollcast::kernels::silu_mul_cpu(args, begin, end);
                      });
    return {};
  });
}

int rollcast_embed(const void* table, int dtype, size_t vocabulary, size_t dim,
                   const int32_t* tokens, size_t rows, float* out) {
  return capi::call("rollcast_embed", [&](device& shared) {
    return capi::embed(shared, table, dtype, vocabulary, dim, {tokens, rows}, out);
  });
}

int rollcast_token_logprobs(const float* logits, size_t rows, size_t vocabulary,
                            const float* temperatures, const int32_t* tokens, float* out) {
  return capi::call("rollcast_token_logprobs", [&](device& shared) {
    return capi::token_logprobs(shared, logits, vocabulary, temperatures, {tokens, rows}, out);
  });
}

int rollcast_hash(const void* data, size_t bytes, uint64_t out[2]) {
  return capi::call("rollcast_hash", [&](device&) -> result<void> {
    if ((data == nullptr && bytes > 0) || out == nullptr)
      return capi::bad("data or out is NULL");
    const auto hash = rollcast::hash_bytes({static_cast<const std::byte*>(data), bytes});
    out[0] = hash.high;
    out[1] = hash.low;
    return {};
  });
}
