// Measures how fast KV images move between two exchanges of this process over loopback, from one
// copy in host memory to the other, hashed. kv_bench [megabytes [part KiB:in flight ...]] prints a
// table; each row is the best of 5 rounds.
#include "cluster/transport/kv_exchange.hpp"
#include "engine/base/hash.hpp"
#include "engine/memory/heap.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <future>
#include <optional>
#include <string>
#include <vector>

namespace rollcast::bench {
namespace {

constexpr int at_once = 4;
constexpr int rounds = 5;

struct parts {
  std::uint32_t bytes = kv_exchange_options{}.part_bytes;
  std::uint32_t in_flight = kv_exchange_options{}.parts_in_flight;
};

/// GB/s of `images` images of `bytes` bytes, `at_once` at a time.
double rate(std::size_t bytes, std::size_t images, const parts& how) {
  const std::vector<std::byte> content(bytes, std::byte{7});
  const std::vector<token_id> tokens{1, 2, 3, 4};
  const kv_manifest manifest{
    {1}, 4, bytes, hash_of(std::span<const token_id>{tokens}), hash_bytes(content), {}};
  kv_exchange_options options;
  options.part_bytes = how.bytes;
  options.parts_in_flight = how.in_flight;
  kv_exchange* holder = nullptr;
  const auto from =
    kv_exchange::open(options, [&](const kv_request& what, const kv_ticket& ticket) {
      auto image = std::make_shared<kv_image>();
      image->bytes.resize(bytes); // a worker copies it out of its blocks
      std::ranges::copy(content, image->bytes.begin());
      image->manifest = manifest;
      image->manifest.response = what.response;
      holder->answer(ticket, std::shared_ptr<const kv_image>{std::move(image)});
    });
  const auto to = kv_exchange::open(options, [](const kv_request&, const kv_ticket&) {});
  if (!from || !to)
    return 0;
  holder = from->get();
  std::deque<std::future<bool>> under_way;
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < images + at_once; ++i) {
    if (i >= at_once) {
      if (!under_way.front().get())
        return 0;
      under_way.pop_front();
    }
    if (i >= images)
      continue;
    auto done = std::make_shared<std::promise<bool>>();
    under_way.push_back(done->get_future());
    (*to)->pull((*from)->endpoint(), {{1}, {i + 1}}, tokens,
                [done](const result<kv_image>& image) { done->set_value(image.has_value()); });
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return 1e-9 * static_cast<double>(bytes * images) / took.count();
}

double best(std::size_t bytes, std::size_t images, const parts& how) {
  double most = 0;
  for (int i = 0; i < rounds; ++i)
    most = std::max(most, rate(bytes, images, how));
  return most;
}

int run(int argc, char** argv) {
  settle_heap();
  const std::size_t all = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 200) * 1'000'000;
  std::vector<parts> ways;
  for (int i = 2; i < argc; ++i) {
    parts p;
    if (std::sscanf(argv[i], "%u:%u", &p.bytes, &p.in_flight) != 2) {
      std::fprintf(stderr, "kv_bench: %s is not KiB:parts in flight, e.g. 128:32\n", argv[i]);
      return 2;
    }
    p.bytes <<= 10;
    ways.push_back(p);
  }
  if (ways.empty())
    ways.push_back({});
  std::printf("%-12s%-12s%-12s%8s\n", "image KiB", "part KiB", "in flight", "GB/s");
  for (const auto& how : ways)
    for (const std::size_t bytes :
         {std::size_t{700} << 10, std::size_t{2} << 20, std::size_t{16} << 20})
      std::printf("%-12zu%-12u%-12u%8.2f\n", bytes >> 10, how.bytes >> 10, how.in_flight,
                  best(bytes, all / bytes, how));
  return 0;
}

} // namespace
} // namespace rollcast::bench

int main(int argc, char** argv) {
  return rollcast::bench::run(argc, argv);
}
