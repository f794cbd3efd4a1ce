#pragma once

#include "kernels/gemm.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace rollcast::test {

/// Bytes that begin on a cache line, as packed matrices must.
class line_buffer {
public:
  explicit line_buffer(std::size_t bytes, std::byte fill = std::byte{0})
    : data_{static_cast<std::byte*>(
      ::operator new (std::max<std::size_t>(bytes, 64), std::align_val_t{64}))} {
    std::fill_n(data_.get(), bytes, fill);
  }
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }

private:
  struct deleter {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, deleter> data_;
};

/// The same words on every machine: splitmix64 of a counter.
class word_source {
public:
  explicit word_source(std::uint64_t seed) : state_{seed} {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::uint32_t bits() { return static_cast<std::uint32_t>(next() >> 32); }

  /// A multiple of 2^-16 in [-2, 2).
  float number() {
    return static_cast<float>(static_cast<std::int32_t>(bits() >> 14) - (1 << 17)) * 0x1p-16f;
  }

private:
  std::uint64_t state_;
};

/// An [n, k] checkpoint tensor and its packed form.
struct weight_case {
  kernels::dtype source_type;
  std::size_t n;
  std::size_t k;
  std::vector<std::byte> source;
  line_buffer packed;
  kernels::dtype packed_type;

  weight_case(kernels::dtype source_type_, kernels::arithmetic how, std::size_t n_, std::size_t k_,
              std::uint64_t seed)
    : source_type{source_type_}, n{n_}, k{k_},
      source(n_ * k_ * kernels::size_of(source_type_)), packed{kernels::packed_bytes(
                                                          packed_as(source_type_, how), n_, k_)},
      packed_type{packed_as(source_type_, how)} {
    word_source words{seed};
    for (std::size_t i = 0; i < n * k; ++i)
      put(i, words.number());
    pack();
  }

  static kernels::dtype packed_as(kernels::dtype source, kernels::arithmetic how) {
    const bool exact_in_bf16 = source == kernels::dtype::bf16 || how == kernels::arithmetic::bf16;
    return exact_in_bf16 ? kernels::dtype::bf16 : kernels::dtype::f32;
  }

  void put_bits(std::size_t i, std::uint32_t bits) {
    std::memcpy(source.data() + i * kernels::size_of(source_type), &bits,
                kernels::size_of(source_type));
  }

  void put(std::size_t i, float value) {
    if (source_type == kernels::dtype::f32)
      put_bits(i, std::bit_cast<std::uint32_t>(value));
    else if (source_type == kernels::dtype::bf16)
      put_bits(i, kernels::round_bf16(value));
    else // sign, exponent 2^-1 and the top fraction bits: any half will do
      put_bits(i, (std::bit_cast<std::uint32_t>(value) >> 16 & 0x83ffu) | 0x3800u);
  }

  void pack() {
    kernels::pack_weights(source.data(), source_type, n, k, 0, packed.data(), packed_type, n);
  }

  /// The weight as the profile of `packed_type` uses it.
  float value(std::size_t column, std::size_t i) const {
    std::uint32_t bits = 0;
    const std::size_t size = kernels::size_of(source_type);
    std::memcpy(&bits, source.data() + (column * k + i) * size, size);
    float exact = std::bit_cast<float>(bits);
    if (source_type == kernels::dtype::bf16)
      exact = kernels::widen_bf16(static_cast<std::uint16_t>(bits));
    if (source_type == kernels::dtype::f16)
      exact = kernels::widen_f16(static_cast<std::uint16_t>(bits));
    return packed_type == kernels::dtype::f32 ? exact
                                              : kernels::widen_bf16(kernels::round_bf16(exact));
  }

  kernels::packed_matrix matrix() const { return {packed.data(), n, k, packed_type}; }
};

inline std::vector<float> numbers(std::size_t count, std::uint64_t seed) {
  word_source words{seed};
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return words.number(); });
  return values;
}

/// What one product adds to: null and false leave it out.
struct gemm_extras {
  const float* bias = nullptr;
  const std::vector<float>* add_to = nullptr;
};

/// Panels [0, edges[0]), [edges[0], edges[1]), ..., the last until the end; row tiles one by one.
inline std::vector<float> multiply(const weight_case& w, kernels::arithmetic how,
                                   const std::vector<float>& x, std::size_t rows,
                                   gemm_extras extras = {},
                                   const std::vector<std::size_t>& edges = {}) {
  line_buffer packed{kernels::packed_rows_bytes(how, rows, w.k), std::byte{0xff}};
  const kernels::packed_rows packed_x{packed.data(), rows, w.k, how};
  for (std::size_t tile = 0; tile < kernels::row_tile_count(how, rows); ++tile)
    kernels::pack_rows(x.data(), w.k, packed_x, tile, tile + 1);
  std::vector<float> y(rows * w.n, std::bit_cast<float>(0x7fc00000u));
  if (extras.add_to != nullptr)
    y = *extras.add_to;
  const kernels::gemm_args args{w.matrix(), packed_x,    y.data(),
                                w.n,        extras.bias, extras.add_to != nullptr};
  std::size_t begin = 0;
  for (const std::size_t edge : edges) {
    kernels::gemm_cpu(args, begin, edge);
    begin = edge;
  }
  kernels::gemm_cpu(args, begin, kernels::panel_count(w.n));
  return y;
}

// -- the definition, one scalar at a time -------------------------------------

inline float without_subnormals(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

/// One FMA of the bf16 profile: rounded once, and zero of the same sign if it is tiny after
/// rounding with an unbounded exponent. Decided in double: a * b is exact there, and two_sum tells
/// on which side of a double the exact sum lies.
inline float bf16_step(float a, float b, float acc) {
  a = without_subnormals(a);
  b = without_subnormals(b);
  acc = without_subnormals(acc);
  const float rounded = std::fma(a, b, acc);
  if (std::fabs(rounded) != 0x1p-126f)
    return without_subnormals(rounded);
  constexpr double edge = 0x1p-126 * (1 - 0x1p-25);
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double sum = product + static_cast<double>(acc);
  const double high = sum - product;
  const double error = (product - (sum - high)) + (static_cast<double>(acc) - high);
  const double below = sum < 0 ? error : -error; // > 0: the exact sum is nearer to zero than `sum`
  const bool tiny = std::fabs(sum) < edge || (std::fabs(sum) == edge && below > 0);
  return tiny ? std::copysign(0.0f, rounded) : rounded;
}

/// y[row, column] before bias, by the words of gemm.hpp.
inline float chain(const weight_case& w, kernels::arithmetic how, const float* x,
                   std::size_t column) {
  float acc = 0;
  const auto a = [&](std::size_t i) { return i < w.k ? x[i] : 0.0f; };
  const auto b = [&](std::size_t i) { return i < w.k ? w.value(column, i) : 0.0f; };
  const auto a16 = [&](std::size_t i) { return kernels::widen_bf16(kernels::round_bf16(a(i))); };
  for (std::size_t i = 0; i < w.k; i += 2) {
    if (how == kernels::arithmetic::f32)
      acc = std::fma(a(i + 1), b(i + 1), std::fma(a(i), b(i), acc));
    else
      acc = bf16_step(a16(i), b(i), bf16_step(a16(i + 1), b(i + 1), acc));
  }
  return acc;
}

/// Bits, with one pattern for every NaN.
inline std::uint32_t bits_of(float x) {
  return std::isnan(x) ? 0x7fc00000u : std::bit_cast<std::uint32_t>(x);
}

} // namespace rollcast::test
