// The device runtime over CUDA's.

#include "kernels/cuda/runtime.hpp"

#include <cuda_runtime.h>

namespace rollcast::kernels::cuda {

struct graph_state {
  cudaGraph_t shape = nullptr;
  cudaGraphExec_t runnable = nullptr;
};

namespace {

std::string words(cudaError_t said) {
  return std::string{cudaGetErrorName(said)} + ": " + cudaGetErrorString(said);
}

tl::unexpected<device_error> failed(cudaError_t said, const std::string& what) {
  cudaGetLastError(); // What has been told is not told again by the next call.
  return tl::unexpected(device_error{static_cast<int>(said), what + " failed, " + words(said)});
}

device_status status_of(cudaError_t said, const char* what) {
  if (said == cudaSuccess)
    return {};
  return failed(said, what);
}

cudaStream_t native(stream_handle stream) {
  return reinterpret_cast<cudaStream_t>(stream);
}
cudaEvent_t native(event_state* event) {
  return reinterpret_cast<cudaEvent_t>(event);
}

/// What the runtime says on a machine without a usable GPU.
bool means_no_device(cudaError_t said) {
  return said == cudaErrorNoDevice || said == cudaErrorInsufficientDriver
         || said == cudaErrorStubLibrary;
}

} // namespace

// -- devices ------------------------------------------------------------------

device_result<std::uint32_t> device_count() {
  int count = 0;
  const cudaError_t said = cudaGetDeviceCount(&count);
  if (means_no_device(said)) {
    cudaGetLastError();
    return 0u;
  }
  if (said != cudaSuccess)
    return failed(said, "cudaGetDeviceCount");
  return static_cast<std::uint32_t>(count);
}

std::string why_no_device() {
  int count = 0;
  const cudaError_t said = cudaGetDeviceCount(&count);
  if (said == cudaSuccess)
    return count > 0 ? "" : "the driver knows no GPU";
  cudaGetLastError();
  return "the driver says " + words(said);
}

device_result<device_info> describe_device(std::uint32_t index) {
  cudaDeviceProp properties{};
  if (const auto said = cudaGetDeviceProperties(&properties, static_cast<int>(index));
      said != cudaSuccess)
    return failed(said, "cudaGetDeviceProperties of device " + std::to_string(index));
  return device_info{properties.name,
                     static_cast<std::uint32_t>(10 * properties.major + properties.minor),
                     static_cast<std::uint32_t>(properties.multiProcessorCount),
                     properties.totalGlobalMem,
                     properties.sharedMemPerBlockOptin,
                     false,
                     uuid_text(properties.uuid.bytes)};
}

device_status use_device(std::uint32_t index) {
  return status_of(cudaSetDevice(static_cast<int>(index)), "cudaSetDevice");
}

/// Any kernel: all of this library are built for the same architectures.
__global__ void nothing_kernel() {}

device_status find_code() {
  cudaFuncAttributes attributes{};
  return status_of(
    cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(nothing_kernel)),
    "looking for code for this GPU");
}

device_result<std::uint64_t> free_memory() {
  std::size_t free = 0, total = 0;
  if (const auto said = cudaMemGetInfo(&free, &total); said != cudaSuccess)
    return failed(said, "cudaMemGetInfo");
  return free;
}

// -- memory -------------------------------------------------------------------

device_result<device_buffer> device_buffer::allocate(std::size_t bytes) {
  void* data = nullptr;
  if (const auto said = cudaMalloc(&data, bytes == 0 ? 1 : bytes); said != cudaSuccess)
    return failed(said, "cudaMalloc of " + std::to_string(bytes) + " bytes");
  return device_buffer{static_cast<std::byte*>(data), bytes};
}

device_buffer::~device_buffer() {
  if (data_ != nullptr)
    cudaFree(data_);
}

device_result<pinned_buffer> pinned_buffer::allocate(std::size_t bytes) {
  void* data = nullptr;
  if (const auto said = cudaMallocHost(&data, bytes == 0 ? 1 : bytes); said != cudaSuccess)
    return failed(said, "cudaMallocHost of " + std::to_string(bytes) + " bytes");
  return pinned_buffer{static_cast<std::byte*>(data), bytes};
}

pinned_buffer::~pinned_buffer() {
  if (data_ != nullptr)
    cudaFreeHost(data_);
}

device_status copy_async(void* to, const void* from, std::size_t bytes, stream_handle stream) {
  return status_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)),
                   "cudaMemcpyAsync");
}

device_status fill_async(void* to, std::uint8_t byte, std::size_t bytes, stream_handle stream) {
  return status_of(cudaMemsetAsync(to, byte, bytes, native(stream)), "cudaMemsetAsync");
}

// -- order --------------------------------------------------------------------

device_result<stream> stream::create() {
  cudaStream_t made = nullptr;
  if (const auto said = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
      said != cudaSuccess)
    return failed(said, "cudaStreamCreateWithFlags");
  return stream{reinterpret_cast<stream_state*>(made)};
}

stream::~stream() {
  if (state_ != nullptr)
    cudaStreamDestroy(native(state_));
}

device_status stream::synchronize() const {
  return status_of(cudaStreamSynchronize(native(state_)), "cudaStreamSynchronize");
}

device_result<bool> stream::idle() const {
  const auto said = cudaStreamQuery(native(state_));
  if (said == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  if (said != cudaSuccess)
    return failed(said, "cudaStreamQuery");
  return true;
}

device_result<event> event::create() {
  cudaEvent_t made = nullptr;
  if (const auto said = cudaEventCreate(&made); said != cudaSuccess)
    return failed(said, "cudaEventCreate");
  return event{reinterpret_cast<event_state*>(made)};
}

event::~event() {
  if (state_ != nullptr)
    cudaEventDestroy(native(state_));
}

device_status event::record(stream_handle stream) const {
  return status_of(cudaEventRecord(native(state_), native(stream)), "cudaEventRecord");
}

device_status event::synchronize() const {
  return status_of(cudaEventSynchronize(native(state_)), "cudaEventSynchronize");
}

device_status event::block(stream_handle stream) const {
  return status_of(cudaStreamWaitEvent(native(stream), native(state_), 0), "cudaStreamWaitEvent");
}

device_result<double> event::milliseconds_since(const event& earlier) const {
  float milliseconds = 0;
  if (const auto said = cudaEventElapsedTime(&milliseconds, native(earlier.state_), native(state_));
      said != cudaSuccess)
    return failed(said, "cudaEventElapsedTime");
  return static_cast<double>(milliseconds);
}

graph::~graph() {
  if (state_ == nullptr)
    return;
  cudaGraphExecDestroy(state_->runnable);
  cudaGraphDestroy(state_->shape);
  delete state_;
}

device_status graph::begin_capture(stream_handle stream) {
  return status_of(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal),
                   "cudaStreamBeginCapture");
}

device_result<graph> graph::end_capture(stream_handle stream) {
  cudaGraph_t shape = nullptr;
  if (const auto said = cudaStreamEndCapture(native(stream), &shape); said != cudaSuccess)
    return failed(said, "cudaStreamEndCapture");
  cudaGraphExec_t runnable = nullptr;
  if (const auto said = cudaGraphInstantiate(&runnable, shape, 0); said != cudaSuccess) {
    cudaGraphDestroy(shape);
    return failed(said, "cudaGraphInstantiate");
  }
  return graph{new graph_state{shape, runnable}};
}

device_status graph::launch(stream_handle stream) const {
  return status_of(cudaGraphLaunch(state_->runnable, native(stream)), "cudaGraphLaunch");
}

device_status graph::update(const graph& same_shape) {
  cudaGraphExecUpdateResultInfo info{};
  return status_of(cudaGraphExecUpdate(state_->runnable, same_shape.state_->shape, &info),
                   "cudaGraphExecUpdate");
}

} // namespace rollcast::kernels::cuda
