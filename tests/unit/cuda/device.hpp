#pragma once

#include "kernels/cuda/runtime.hpp"
#include "kernels/types.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#if defined(ROLLCAST_SIMT_HOST)
#include "kernels/cuda/emulator.hpp"
#endif

namespace rollcast::test {

namespace cuda = kernels::cuda;

/// Has the emulator run blocks and warps in another order; a GPU has an order of its own.
inline void run_in_order([[maybe_unused]] std::uint64_t seed) {
#if defined(ROLLCAST_SIMT_HOST)
  cuda::set_emulated_order(seed);
#endif
}

/// What a call must have given; its words if it has not.
template <class T>
T must(cuda::device_result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().what;
    std::abort();
  }
  return std::move(*result);
}
inline void must(const cuda::device_status& status) {
  ASSERT_TRUE(status.has_value()) << status.error().what;
}

/// Values on the device.
template <class T>
class on_device {
public:
  explicit on_device(std::size_t count)
    : count_(count), memory_(must(cuda::device_buffer::allocate(count * sizeof(T)))) {}
  explicit on_device(const std::vector<T>& values) : on_device(values.size()) {
    must(cuda::copy_async(memory_.data(), values.data(), count_ * sizeof(T), nullptr));
  }

  T* data() const { return memory_.template as<T>(); }
  std::size_t size() const { return count_; }
  std::vector<T> values() const {
    std::vector<T> copy(count_);
    must(cuda::copy_async(copy.data(), memory_.data(), count_ * sizeof(T), nullptr));
    return copy;
  }

private:
  std::size_t count_;
  cuda::device_buffer memory_;
};

inline std::vector<std::uint16_t> rounded(const std::vector<float>& x) {
  std::vector<std::uint16_t> bits;
  for (const float v : x)
    bits.push_back(kernels::round_bf16(v));
  return bits;
}

inline std::vector<float> widened(const std::vector<std::uint16_t>& x) {
  std::vector<float> values;
  for (const auto bits : x)
    values.push_back(kernels::widen_bf16(bits));
  return values;
}

/// Whether all bits are the same.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

} // namespace rollcast::test
