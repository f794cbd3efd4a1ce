#pragma once

#include <tl/expected.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

/// The device under the kernels of this folder: memory, streams, events, graphs. One header, two
/// libraries: `rollcast_cuda` (nvcc, the CUDA runtime) and `rollcast_cuda_emulated` (g++, every
/// kernel run thread by thread on the host). A binary links one of them; what includes this header
/// is compiled once and knows neither.
namespace rollcast::kernels::cuda {

/// What the device said. `code` is the runtime's own number (cudaError_t); negative numbers are the
/// emulator's.
struct device_error {
  int code = 0;
  std::string what; ///< One line: the call, what it was given, and the device's words.
};

template <class T>
using device_result = tl::expected<T, device_error>;
using device_status = device_result<void>;

struct stream_state; ///< cudaStream_t, or the emulator's.
struct event_state;
struct graph_state;
using stream_handle = stream_state*;

// -- devices ------------------------------------------------------------------

struct device_info {
  std::string name;
  std::uint32_t architecture = 0; ///< 10 * major + minor: 80, 90, 100. The emulator says 0.
  std::uint32_t multiprocessors = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t shared_bytes = 0; ///< Shared memory that one block may ask for.
  bool emulated = false;
  /// Names it among all GPUs that there are, as nvidia-smi does. The emulator's are zero but for
  /// the number.
  std::string uuid;
};

/// "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f" of the bytes 0 to 15.
inline std::string uuid_text(std::span<const char, 16> bytes) {
  std::string out = "GPU";
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10)
      out += '-';
    for (const int shift : {4, 0})
      out += "0123456789abcdef"[static_cast<unsigned char>(bytes[i]) >> shift & 15];
  }
  return out;
}

/// Devices that can be used. 0, and no error, if there is no driver or no GPU: `why_no_device` has
/// the words for it.
device_result<std::uint32_t> device_count();

/// One line: why `device_count` is 0. Empty if it is not.
std::string why_no_device();

device_result<device_info> describe_device(std::uint32_t index);

/// Makes a device current for the calling thread. Every call below works on the current device.
device_status use_device(std::uint32_t index);

/// Shared memory of a block that the largest kernel of this folder asks for, at the most.
inline constexpr std::uint64_t shared_bytes_needed = 136 * 1024;

/// The first architecture whose instructions the kernels use.
inline constexpr std::uint32_t architecture_min = 80;

/// Fails if this build has no code for the current device: its architecture is newer than the
/// toolkit's, or was left out.
device_status find_code();

/// Bytes of device memory that are free now.
device_result<std::uint64_t> free_memory();

// -- memory -------------------------------------------------------------------

/// Device memory, 256-byte aligned, freed with the object. The emulator fills it with ones, which
/// are NaN in bf16, f32 and f64; a device leaves what was there.
class device_buffer {
public:
  device_buffer() = default;
  static device_result<device_buffer> allocate(std::size_t bytes);
  device_buffer(device_buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_buffer& operator=(device_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_buffer();

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  template <class T>
  T* as() const noexcept {
    return reinterpret_cast<T*>(data_);
  }

private:
  device_buffer(std::byte* data, std::size_t size) noexcept : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Page-locked host memory, which the device copies from and to without a detour.
class pinned_buffer {
public:
  pinned_buffer() = default;
  static device_result<pinned_buffer> allocate(std::size_t bytes);
  pinned_buffer(pinned_buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  pinned_buffer& operator=(pinned_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~pinned_buffer();

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  template <class T>
  T* as() const noexcept {
    return reinterpret_cast<T*>(data_);
  }

private:
  pinned_buffer(std::byte* data, std::size_t size) noexcept : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Copies between any two of device, pinned and pageable memory, in the order of the stream. Inside
/// a capture the addresses are kept, and what they hold at the launch is copied.
device_status copy_async(void* to, const void* from, std::size_t bytes, stream_handle stream);

/// Sets every byte, in the order of the stream.
device_status fill_async(void* to, std::uint8_t byte, std::size_t bytes, stream_handle stream);

// -- order --------------------------------------------------------------------

/// A queue of device work. The emulator does everything at once, within the call.
class stream {
public:
  static device_result<stream> create();
  stream(stream&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  stream& operator=(stream&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  ~stream();

  stream_handle handle() const noexcept { return state_; }

  /// Waits for all that was queued. The place where a kernel's fault comes to light.
  device_status synchronize() const;

  /// Whether all that was queued is done, without waiting; a fault like `synchronize`.
  device_result<bool> idle() const;

private:
  explicit stream(stream_state* state) noexcept : state_(state) {}
  stream_state* state_ = nullptr;
};

/// A mark in a stream, with the time at which it was passed.
class event {
public:
  static device_result<event> create();
  event(event&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  event& operator=(event&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  ~event();

  device_status record(stream_handle stream) const;
  device_status synchronize() const;
  /// Makes later work of `stream` wait for the mark; the host goes on.
  device_status block(stream_handle stream) const;
  /// Time between two marks that have been passed.
  device_result<double> milliseconds_since(const event& earlier) const;

private:
  explicit event(event_state* state) noexcept : state_(state) {}
  event_state* state_ = nullptr;
};

/// A captured run of copies and launches, with the arguments they had.
class graph {
public:
  graph(graph&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  graph& operator=(graph&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  ~graph();

  /// Between these two, work queued on the stream is kept and not done. Copies to and from pageable
  /// memory, allocations and synchronisation are not allowed in between.
  static device_status begin_capture(stream_handle stream);
  static device_result<graph> end_capture(stream_handle stream);

  device_status launch(stream_handle stream) const;

  /// Takes the arguments of a graph of the same shape. An error if the shapes differ: then use the
  /// other one itself.
  device_status update(const graph& same_shape);

private:
  explicit graph(graph_state* state) noexcept : state_(state) {}
  graph_state* state_ = nullptr;
};

} // namespace rollcast::kernels::cuda
