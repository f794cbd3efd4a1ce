#include "engine/backend/cuda_rates.hpp"

#include "engine/backend/cublaslt.hpp"
#include "engine/backend/cuda_backend.hpp"
#include "engine/backend/cuda_error.hpp"
#include "engine/base/prng.hpp"
#include "kernels/cuda/gemm.hpp"
#include "kernels/cuda/runtime.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <string>
#include <utility>

namespace rollcast {

namespace gpu = kernels::cuda;

namespace {

using gpu::device_result;
using gpu::device_status;

constexpr int rounds = 7;
constexpr std::size_t copy_bytes = std::size_t{2} << 30;
constexpr std::size_t square = 8192;

/// A GPU's stream and two marks in it.
struct stopwatch {
  gpu::stream stream;
  gpu::event begin;
  gpu::event end;

  static device_result<stopwatch> make(std::uint32_t device) {
    if (auto ok = gpu::use_device(device); !ok)
      return tl::unexpected(ok.error());
    auto stream = gpu::stream::create();
    auto begin = gpu::event::create();
    auto end = gpu::event::create();
    if (!stream || !begin || !end)
      return tl::unexpected(!stream ? stream.error() : !begin ? begin.error() : end.error());
    return stopwatch{std::move(*stream), std::move(*begin), std::move(*end)};
  }

  /// Seconds of the best round of what `queue` queues.
  device_result<double> best(const std::function<device_status()>& queue) const {
    double best_ms = std::numeric_limits<double>::infinity();
    for (int round = 0; round < rounds; ++round) {
      auto ok = begin.record(stream.handle());
      ok = ok ? queue() : ok;
      ok = ok ? end.record(stream.handle()) : ok;
      ok = ok ? stream.synchronize() : ok;
      if (!ok)
        return tl::unexpected(ok.error());
      const auto ms = end.milliseconds_since(begin);
      if (!ms)
        return tl::unexpected(ms.error());
      best_ms = std::min(best_ms, *ms);
    }
    return best_ms / 1e3;
  }

  /// The same of a graph of it: the host's time does not count.
  device_result<double> best_graph(const std::function<device_status()>& queue) const {
    if (auto ok = queue(); !ok) // loads what it needs
      return tl::unexpected(ok.error());
    if (auto ok = gpu::graph::begin_capture(stream.handle()); !ok)
      return tl::unexpected(ok.error());
    auto queued = queue();
    const auto made = gpu::graph::end_capture(stream.handle());
    if (!queued || !made)
      return tl::unexpected(!queued ? queued.error() : made.error());
    return best([&] { return made->launch(stream.handle()); });
  }
};

/// Device memory full of bf16 numbers between -1 and 1: products of zeros run faster than others.
device_result<gpu::device_buffer> random_bf16(std::size_t count, const stopwatch& watch) {
  auto memory = gpu::device_buffer::allocate(count * 2);
  if (!memory)
    return memory;
  prng random{count};
  std::vector<std::uint16_t> some(std::min<std::size_t>(count, std::size_t{1} << 20));
  for (auto& bits : some)
    bits = kernels::round_bf16(static_cast<float>(random.below(1u << 16)) / 32768.0f - 1.0f);
  for (std::size_t at = 0; at < count; at += some.size())
    if (auto ok = gpu::copy_async(memory->data() + at * 2, some.data(),
                                  std::min(some.size(), count - at) * 2, watch.stream.handle());
        !ok)
      return tl::unexpected(ok.error());
  if (auto ok = watch.stream.synchronize(); !ok)
    return tl::unexpected(ok.error());
  return memory;
}

device_result<double> copy_rate(const stopwatch& watch) {
  auto from = gpu::device_buffer::allocate(copy_bytes);
  auto to = gpu::device_buffer::allocate(copy_bytes);
  if (!from || !to)
    return tl::unexpected(!from ? from.error() : to.error());
  const auto seconds = watch.best(
    [&] { return gpu::copy_async(to->data(), from->data(), copy_bytes, watch.stream.handle()); });
  if (!seconds)
    return seconds;
  return 2.0 * static_cast<double>(copy_bytes) / *seconds;
}

device_result<double> matrix_rate(const stopwatch& watch, const product_library& library) {
  auto x = random_bf16(square * square, watch);
  auto w = random_bf16(square * square, watch);
  auto y = gpu::device_buffer::allocate(square * square * 2);
  auto workspace = gpu::device_buffer::allocate(library.workspace_bytes());
  if (!x || !w || !y || !workspace)
    return tl::unexpected(gpu::device_error{-1, "no memory for matrices of 8192"});
  library_product product{
    x->as<gpu::bf16_bits>(), w->as<gpu::bf16_bits>(), y->data(), square, square, square};
  product.output = gpu::gemm_output::bf16;
  const auto seconds =
    watch.best([&] { return library.multiply(product, workspace->data(), watch.stream.handle()); });
  if (!seconds)
    return seconds;
  return 2.0 * square * square * square / *seconds;
}

/// One layer's products, each with weights of its own.
struct layer_products {
  struct one {
    std::size_t n;
    std::size_t k;
    gpu::device_buffer w = {};
  };
  std::array<one, 4> all;
  gpu::device_buffer x = {};
  gpu::device_buffer y = {};
  gpu::device_buffer workspace = {};

  static device_result<layer_products> make(const model_config& c, std::size_t rows,
                                            std::size_t library_workspace, const stopwatch& watch) {
    const std::size_t q = c.heads * c.head_dim;
    layer_products out{{one{q + 2 * c.kv_heads * c.head_dim, c.hidden}, one{c.hidden, q},
                        one{2 * c.intermediate, c.hidden}, one{c.hidden, c.intermediate}}};
    std::size_t widest = 0;
    std::size_t broadest = 0;
    std::size_t workspace = library_workspace;
    for (auto& p : out.all) {
      auto w = random_bf16(p.n * p.k, watch);
      if (!w)
        return tl::unexpected(w.error());
      p.w = std::move(*w);
      widest = std::max(widest, p.k);
      broadest = std::max(broadest, p.n);
      workspace = std::max(workspace, gpu::gemm_workspace_bytes(rows, p.n, p.k));
    }
    auto x = random_bf16(rows * widest, watch);
    auto y = gpu::device_buffer::allocate(rows * broadest * 4);
    auto space = gpu::device_buffer::allocate(workspace);
    if (!x || !y || !space)
      return tl::unexpected(!x ? x.error() : !y ? y.error() : space.error());
    out.x = std::move(*x);
    out.y = std::move(*y);
    out.workspace = std::move(*space);
    return out;
  }

  device_status clear(gpu::stream_handle stream) const {
    return gpu::fill_async(workspace.data(), 0, workspace.size(), stream);
  }

  device_status exact(std::size_t rows, gpu::stream_handle stream) const {
    for (const auto& p : all) {
      gpu::gemm_args args;
      args.x = x.as<gpu::bf16_bits>();
      args.x_stride = p.k;
      args.w = p.w.as<gpu::bf16_bits>();
      args.y = y.data();
      args.y_stride = p.n;
      args.rows = rows;
      args.n = p.n;
      args.k = p.k;
      args.output = gpu::gemm_output::bf16; // as the library writes
      args.workspace = workspace.data();
      if (auto ok = gpu::gemm(args, stream); !ok)
        return ok;
    }
    return {};
  }

  device_status fast(const product_library& library, std::size_t rows,
                     gpu::stream_handle stream) const {
    for (const auto& p : all) {
      library_product product{
        x.as<gpu::bf16_bits>(), p.w.as<gpu::bf16_bits>(), y.data(), rows, p.n, p.k};
      product.output = gpu::gemm_output::bf16;
      if (auto ok = library.multiply(product, workspace.data(), stream); !ok)
        return ok;
    }
    return {};
  }
};

} // namespace

result<gpu_rates> measure_gpu(std::uint32_t device) {
  if (auto ok = find_gpu(device); !ok)
    return fail(ok);
  const std::string doing = "measuring GPU " + std::to_string(device);
  const auto info = gpu::describe_device(device);
  if (!info)
    return device_failed(info, doing);
  const auto watch = stopwatch::make(device);
  if (!watch)
    return device_failed(watch, doing);
  gpu_rates rates;
  rates.name = info->name;
  const auto copied = copy_rate(*watch);
  if (!copied)
    return device_failed(copied, doing);
  rates.copy_bytes_per_s = *copied;
  if (const auto library = cublaslt::find(rates.without_cublaslt)) {
    const auto rate = matrix_rate(*watch, *library);
    if (!rate)
      return device_failed(rate, doing);
    rates.bf16_flops_per_s = *rate;
  }
  return rates;
}

result<std::vector<product_times>> measure_products(std::uint32_t device,
                                                    const model_config& config,
                                                    std::span<const std::uint32_t> rows) {
  if (auto ok = find_gpu(device); !ok)
    return fail(ok);
  const std::string doing = "measuring products on GPU " + std::to_string(device);
  const auto watch = stopwatch::make(device);
  if (!watch)
    return device_failed(watch, doing);
  const auto most = rows.empty() ? 1u : *std::ranges::max_element(rows);
  std::string ignored;
  const auto library = cublaslt::find(ignored);
  const auto products =
    layer_products::make(config, most, library ? library->workspace_bytes() : 0, *watch);
  if (!products)
    return device_failed(products, doing);
  const auto stream = watch->stream.handle();
  std::vector<product_times> out;
  for (const auto count : rows) {
    product_times times{count};
    if (auto ok = products->clear(stream); !ok)
      return device_failed(ok, doing);
    const auto exact = watch->best_graph([&] { return products->exact(count, stream); });
    if (!exact)
      return device_failed(exact, doing);
    times.exact_s = *exact;
    if (library) {
      const auto fast = watch->best_graph([&] { return products->fast(*library, count, stream); });
      if (!fast)
        return device_failed(fast, doing);
      times.fast_s = *fast;
    }
    out.push_back(times);
  }
  return out;
}

} // namespace rollcast
