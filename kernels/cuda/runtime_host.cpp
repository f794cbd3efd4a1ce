// The device runtime of the emulator: memory is the host's, a stream does everything at once.

#include "kernels/cuda/emulator.hpp"
#include "kernels/cuda/runtime.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace rollcast::kernels::cuda {

using work = std::function<device_status()>;

struct stream_state {
  bool capturing = false;
  std::vector<work> captured;
};

struct event_state {
  std::chrono::steady_clock::time_point at{};
  bool past = true;               ///< Or never recorded.
  std::uint64_t stream_waits = 0; ///< Of the host, when it was recorded.
};

struct graph_state {
  std::vector<work> nodes;
};

namespace {

constexpr std::uint32_t devices = 2;
constexpr std::uint64_t memory_bytes = std::uint64_t{4} << 30;
std::atomic<std::uint64_t> memory_used{0}; // Of both devices together.
thread_local std::uint64_t waits = 0;
thread_local std::uint64_t stream_waits = 0; // of `waits`

tl::unexpected<device_error> failed(std::string why) {
  return tl::unexpected(device_error{-1, std::move(why)});
}

std::size_t rounded(std::size_t bytes) noexcept {
  return (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
}

/// @returns null without memory.
std::byte* take(std::size_t bytes) {
  auto* const data = static_cast<std::byte*>(std::aligned_alloc(256, rounded(bytes)));
  if (data != nullptr)
    std::memset(data, 0xff, rounded(bytes));
  return data;
}

} // namespace

device_result<std::uint32_t> device_count() {
  return devices;
}

std::string why_no_device() {
  return "";
}

device_result<device_info> describe_device(std::uint32_t index) {
  if (index >= devices)
    return failed("there is no device " + std::to_string(index) + ": the emulator has "
                  + std::to_string(devices));
  std::array<char, 16> uuid{};
  uuid[15] = static_cast<char>(index);
  return device_info{"emulated",     0, 2, memory_bytes, simt::host::shared_bytes_max, true,
                     uuid_text(uuid)};
}

device_status use_device(std::uint32_t index) {
  if (const auto info = describe_device(index); !info)
    return tl::unexpected(info.error());
  return {};
}

device_status find_code() {
  return {};
}

device_result<std::uint64_t> free_memory() {
  return memory_bytes - std::min(memory_bytes, memory_used.load());
}

device_result<device_buffer> device_buffer::allocate(std::size_t bytes) {
  if (memory_used.fetch_add(rounded(bytes)) + rounded(bytes) > memory_bytes) {
    memory_used -= rounded(bytes);
    return failed("out of device memory: " + std::to_string(bytes) + " bytes more than there are");
  }
  std::byte* const data = take(bytes);
  if (data == nullptr) {
    memory_used -= rounded(bytes);
    return failed("out of memory: " + std::to_string(bytes) + " bytes");
  }
  return device_buffer{data, bytes};
}

device_buffer::~device_buffer() {
  if (data_ == nullptr)
    return;
  memory_used -= rounded(size_);
  std::free(data_);
}

device_result<pinned_buffer> pinned_buffer::allocate(std::size_t bytes) {
  std::byte* const data = take(bytes);
  if (data == nullptr)
    return failed("out of memory: " + std::to_string(bytes) + " pinned bytes");
  return pinned_buffer{data, bytes};
}

pinned_buffer::~pinned_buffer() {
  std::free(data_);
}

namespace simt::host {

device_status submit(stream_handle stream, work todo) {
  if (stream == nullptr || !stream->capturing)
    return todo();
  stream->captured.push_back(std::move(todo));
  return {};
}

} // namespace simt::host

device_status copy_async(void* to, const void* from, std::size_t bytes, stream_handle stream) {
  return simt::host::submit(stream, [=]() -> device_status {
    if (bytes != 0)
      std::memmove(to, from, bytes);
    return {};
  });
}

device_status fill_async(void* to, std::uint8_t byte, std::size_t bytes, stream_handle stream) {
  return simt::host::submit(stream, [=]() -> device_status {
    if (bytes != 0)
      std::memset(to, byte, bytes);
    return {};
  });
}

device_result<stream> stream::create() {
  return stream{new stream_state};
}

stream::~stream() {
  delete state_;
}

std::uint64_t emulated_waits() noexcept {
  return waits;
}

device_status stream::synchronize() const {
  ++waits;
  ++stream_waits;
  if (state_->capturing)
    return failed("a stream that is being captured cannot be waited for");
  return {};
}

device_result<bool> stream::idle() const {
  if (state_->capturing)
    return tl::unexpected(device_error{-1, "a stream that is being captured is never idle"});
  return true;
}

device_result<event> event::create() {
  return event{new event_state};
}

event::~event() {
  delete state_;
}

device_status event::record(stream_handle stream) const {
  return simt::host::submit(stream, [state = state_]() -> device_status {
    state->at = std::chrono::steady_clock::now();
    state->past = false;
    state->stream_waits = stream_waits;
    return {};
  });
}

/// A wait, unless the host has waited for it, or for a stream, since it was recorded.
device_status event::synchronize() const {
  if (!std::exchange(state_->past, true) && state_->stream_waits == stream_waits)
    ++waits;
  return {};
}

device_status event::block(stream_handle) const {
  return {};
}

device_result<double> event::milliseconds_since(const event& earlier) const {
  return std::chrono::duration<double, std::milli>(state_->at - earlier.state_->at).count();
}

graph::~graph() {
  delete state_;
}

device_status graph::begin_capture(stream_handle stream) {
  if (stream->capturing)
    return failed("this stream is being captured already");
  stream->capturing = true;
  stream->captured.clear();
  return {};
}

device_result<graph> graph::end_capture(stream_handle stream) {
  if (!stream->capturing)
    return failed("this stream is not being captured");
  stream->capturing = false;
  return graph{new graph_state{std::exchange(stream->captured, {})}};
}

device_status graph::launch(stream_handle stream) const {
  // A copy, because the graph may be gone when a capture that it is launched in runs.
  return simt::host::submit(stream, [nodes = state_->nodes]() -> device_status {
    for (const auto& node : nodes)
      if (auto done = node(); !done)
        return done;
    return {};
  });
}

device_status graph::update(const graph& same_shape) {
  if (same_shape.state_->nodes.size() != state_->nodes.size())
    return failed("the graphs differ in shape: " + std::to_string(state_->nodes.size()) + " and "
                  + std::to_string(same_shape.state_->nodes.size()) + " nodes");
  state_->nodes = same_shape.state_->nodes;
  return {};
}

} // namespace rollcast::kernels::cuda
