// Goal: the emulator finds what a GPU would get wrong silently, and its operations are PTX's.
// Method: small kernels with a barrier left out, a lane that strays, a wait forgotten; matrices
// multiplied through fragments against a plain loop; copies, launches and graphs of the runtime.
#include "kernels/cuda/emulator.hpp"
#include "kernels/cuda/launch.cuh"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <array>
#include <cmath>

namespace rollcast::test {
namespace {

using namespace kernels::cuda;

struct probe {
  float* out;
  const unsigned char* in;
  bool broken;
};

cuda::device_status run(void (*kernel)(probe), const probe& args, unsigned threads) {
  return launch("probe", kernel, {{2, 1, 1}, threads, 4096}, args, nullptr);
}

class emulator : public testing::Test {
protected:
  void TearDown() override { set_emulated_order(0); }
};

/// Every thread reads its neighbour's number from shared memory; broken: without a barrier.
ROLLCAST_KERNEL(64, 1) neighbour_kernel(probe args) {
  auto* const numbers = reinterpret_cast<float*>(simt::shared_memory());
  numbers[simt::thread_x()] = static_cast<float>(simt::thread_x());
  if (!args.broken)
    simt::sync_block();
  const float right = numbers[(simt::thread_x() + 1) % simt::block_threads()];
  args.out[simt::block_x() * simt::block_threads() + simt::thread_x()] = right;
}

TEST_F(emulator, shows_nan_where_a_barrier_is_missing) {
  const on_device<float> out{128};
  must(run(neighbour_kernel, {out.data(), nullptr, false}, 64));
  EXPECT_EQ(out.values()[63], 0.0f);
  EXPECT_EQ(out.values()[64 + 31], 32.0f);
  must(run(neighbour_kernel, {out.data(), nullptr, true}, 64));
  EXPECT_TRUE(std::isnan(out.values()[31])) << "the next warp had not written yet";
  set_emulated_order(1);
  must(run(neighbour_kernel, {out.data(), nullptr, true}, 64));
  EXPECT_TRUE(std::isnan(out.values()[63])) << "nor has the first, in the other order";
}

ROLLCAST_KERNEL(64, 1) stray_thread_kernel(probe args) {
  if (!args.broken || simt::thread_x() != 37)
    simt::sync_block();
}
ROLLCAST_KERNEL(64, 1) stray_lane_kernel(probe args) {
  if (!args.broken || simt::lane() != 5)
    args.out[simt::thread_x()] = simt::shuffle_xor(1.0f, 1);
}

TEST_F(emulator, stops_a_kernel_whose_threads_part) {
  const on_device<float> out{64};
  for (const auto kernel : {stray_thread_kernel, stray_lane_kernel}) {
    EXPECT_TRUE(run(kernel, {out.data(), nullptr, false}, 64).has_value());
    const auto said = run(kernel, {out.data(), nullptr, true}, 64);
    ASSERT_FALSE(said.has_value());
    EXPECT_NE(said.error().what.find("threads part"), std::string::npos) << said.error().what;
  }
  EXPECT_TRUE(run(neighbour_kernel, {on_device<float>{128}.data(), nullptr, false}, 64).has_value())
    << "and runs the next kernel as if nothing had been";
}

/// Copies 16 bytes a lane; broken: without waiting for them.
ROLLCAST_KERNEL(32, 1) copy_kernel(probe args) {
  unsigned char* const to = simt::shared_memory() + simt::lane() * 16;
  simt::copy_async_16(to, args.in + simt::lane() * 16, simt::lane() < 16);
  simt::copy_async_commit();
  simt::copy_async_16(to + 512, args.in, true);
  simt::copy_async_commit();
  if (args.broken)
    simt::copy_async_wait<2>();
  else
    simt::copy_async_wait<1>();
  simt::sync_warp();
  args.out[simt::lane()] = reinterpret_cast<float*>(simt::shared_memory())[simt::lane() * 4];
  args.out[32 + simt::lane()] = reinterpret_cast<float*>(simt::shared_memory())[128];
}

TEST_F(emulator, delivers_a_copy_when_somebody_has_waited) {
  const on_device<float> in{pattern(128, 3)}, out{64};
  const auto* const bytes = reinterpret_cast<const unsigned char*>(in.data());
  must(run(copy_kernel, {out.data(), bytes, false}, 32));
  for (std::size_t i = 0; i < 32; ++i)
    EXPECT_EQ(out.values()[i], i < 16 ? in.values()[4 * i] : 0.0f) << i;
  EXPECT_TRUE(std::isnan(out.values()[32])) << "the second group was not waited for";
  must(run(copy_kernel, {out.data(), bytes, true}, 32));
  EXPECT_TRUE(std::isnan(out.values()[0]));
}

ROLLCAST_KERNEL(32, 1) outlying_kernel(probe args) {
  std::uint32_t r[4];
  simt::load_matrix_x4(r, simt::shared_memory() + (args.broken ? 4088 : 4080));
}

TEST_F(emulator, stops_a_kernel_that_leaves_its_shared_memory) {
  EXPECT_TRUE(run(outlying_kernel, {nullptr, nullptr, false}, 32).has_value());
  EXPECT_FALSE(run(outlying_kernel, {nullptr, nullptr, true}, 32).has_value());
}

TEST_F(emulator, refuses_what_no_gpu_takes) {
  EXPECT_FALSE(launch("probe", neighbour_kernel, {{1, 1, 1}, 48, 0}, probe{}, nullptr).has_value());
  EXPECT_FALSE(launch("probe", neighbour_kernel, {{0, 1, 1}, 32, 0}, probe{}, nullptr).has_value());
  EXPECT_FALSE(
    launch("probe", neighbour_kernel, {{1, 1, 1}, 32, 240'000}, probe{}, nullptr).has_value());
}

/// c[16][8] = a[16][16] * b[16][8], from shared memory; b lies as [8][16], or as [16][8] if broken
/// is set, which then means transposed.
ROLLCAST_KERNEL(32, 1) matrix_kernel(probe args) {
  unsigned char* const a = simt::shared_memory();
  for (unsigned i = simt::lane(); i < 64; i += 32)
    simt::store_16(a + i * 16, simt::load_16(args.in + i * 16));
  simt::sync_warp();
  const unsigned lane = simt::lane();
  std::uint32_t left[4], right[4];
  simt::load_matrix_x4(left, a + lane % 16 * 32 + lane / 16 * 16);
  const unsigned char* const b = a + 512;
  if (args.broken)
    simt::load_matrix_x4_trans(right, b + (lane / 8 % 2 * 8 + lane % 8) * 16);
  else
    simt::load_matrix_x4(right, b + lane % 8 * 32 + lane / 8 % 2 * 16);
  float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  const std::uint32_t pair[2] = {right[0], right[1]};
  simt::mma_bf16(c, left, pair);
  for (unsigned i = 0; i < 4; ++i)
    args.out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}

TEST_F(emulator, multiplies_matrices_as_ptx_lays_them_out) {
  const auto a = rounded(pattern(256, 5, 2.0f)), b = rounded(pattern(128, 6, 2.0f));
  for (const bool trans : {false, true}) {
    std::vector<std::uint16_t> both = a;
    both.insert(both.end(), b.begin(), b.end());
    both.resize(512, 0);
    const on_device<std::uint16_t> in{both};
    const on_device<float> out{128};
    must(launch("probe", matrix_kernel, {{1, 1, 1}, 32, 4096},
                probe{out.data(), reinterpret_cast<const unsigned char*>(in.data()), trans},
                nullptr));
    for (std::size_t m = 0; m < 16; ++m)
      for (std::size_t n = 0; n < 8; ++n) {
        double sum = 1;
        for (std::size_t k = 0; k < 16; ++k)
          sum += static_cast<double>(kernels::widen_bf16(a[m * 16 + k]))
                 * static_cast<double>(kernels::widen_bf16(b[trans ? k * 8 + n : n * 16 + k]));
        EXPECT_NEAR(out.values()[m * 8 + n], sum, 1e-5) << m << " " << n;
      }
  }
}

// -- the runtime --------------------------------------------------------------

TEST(cuda_runtime, has_memory_until_it_is_used_up) {
  const auto before = must(cuda::free_memory());
  {
    const auto memory = must(cuda::device_buffer::allocate(1 << 20));
    EXPECT_EQ(must(cuda::free_memory()), before - (1 << 20));
    EXPECT_TRUE(std::isnan(memory.as<float>()[5])) << "nobody may count on zeros";
  }
  EXPECT_EQ(must(cuda::free_memory()), before);
  EXPECT_FALSE(cuda::device_buffer::allocate(before + 1).has_value());
  EXPECT_EQ(must(cuda::free_memory()), before);
  EXPECT_TRUE(cuda::pinned_buffer::allocate(0).has_value());
}

TEST(cuda_runtime, names_its_devices) {
  EXPECT_GT(must(cuda::device_count()), 0u);
  EXPECT_TRUE(must(cuda::describe_device(0)).emulated);
  EXPECT_FALSE(cuda::use_device(99).has_value());
}

ROLLCAST_KERNEL(32, 1) add_kernel(probe args) {
  args.out[simt::lane()] = args.out[simt::lane()] + (args.broken ? 100.0f : 1.0f);
}

TEST(cuda_runtime, replays_what_a_stream_has_captured) {
  const auto stream = must(cuda::stream::create());
  const on_device<float> numbers{std::vector<float>(32, 1.0f)};
  auto staging = must(cuda::pinned_buffer::allocate(128));
  const auto capture = [&](bool big) {
    must(cuda::graph::begin_capture(stream.handle()));
    must(launch("add", add_kernel, {{1, 1, 1}, 32, 0}, probe{numbers.data(), nullptr, big},
                stream.handle()));
    must(cuda::copy_async(staging.data(), numbers.data(), 128, stream.handle()));
    return must(cuda::graph::end_capture(stream.handle()));
  };
  auto graph = capture(false);
  EXPECT_EQ(numbers.values()[7], 1.0f) << "nothing is done while it is captured";
  must(graph.launch(stream.handle()));
  must(graph.launch(stream.handle()));
  must(stream.synchronize());
  EXPECT_EQ(staging.as<float>()[7], 3.0f);
  must(graph.update(capture(true)));
  must(graph.launch(stream.handle()));
  EXPECT_EQ(staging.as<float>()[31], 103.0f);
  must(cuda::graph::begin_capture(stream.handle()));
  EXPECT_FALSE(cuda::graph::begin_capture(stream.handle()).has_value());
  EXPECT_FALSE(graph.update(must(cuda::graph::end_capture(stream.handle()))).has_value());
  EXPECT_FALSE(cuda::graph::end_capture(stream.handle()).has_value());
}

TEST(cuda_runtime, gives_the_words_of_a_kernel_that_fails_in_a_graph) {
  const auto stream = must(cuda::stream::create());
  must(cuda::graph::begin_capture(stream.handle()));
  must(launch("stray", stray_thread_kernel, {{1, 1, 1}, 64, 0}, probe{nullptr, nullptr, true},
              stream.handle()));
  const auto said = must(cuda::graph::end_capture(stream.handle())).launch(stream.handle());
  ASSERT_FALSE(said.has_value());
  EXPECT_NE(said.error().what.find("kernel stray"), std::string::npos);
}

TEST(cuda_runtime, writes_a_uuid_as_nvidia_smi_does) {
  std::array<char, 16> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<char>(i * 17);
  EXPECT_EQ(uuid_text(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
  EXPECT_EQ(describe_device(1)->uuid, "GPU-00000000-0000-0000-0000-000000000001");
}

} // namespace
} // namespace rollcast::test
