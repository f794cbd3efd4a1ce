// Measures a journal under a rollout: responses that end chunks all the time, each with `chunk`
// tokens, results that finish, are acknowledged and forgotten. Prints what a commit takes, how fast
// records become durable when nothing else is done, what `write` takes of the one who calls it, and
// bytes on disk for each token; beside it the time of an fsync on the same disk, which bounds
// everything. journal_bench [directory [chunk tokens [responses]]]
#include "cluster/journal/journal.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace rollcast::journal {
namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point t) {
  return std::chrono::duration<double>(clock::now() - t).count();
}

double quantile(std::vector<double> values, double q) {
  if (values.empty())
    return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(q * static_cast<double>(values.size() - 1))];
}

void print_fsync(const std::string& directory) {
  const auto path = directory + "/fsync";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  std::vector<double> times;
  const std::string page(4'096, 'x');
  for (int i = 0; i < 200; ++i) {
    const auto began = clock::now();
    if (::pwrite(fd, page.data(), page.size(), 0) < 0 || ::fdatasync(fd) != 0)
      std::abort();
    times.push_back(seconds_since(began));
  }
  ::close(fd);
  std::filesystem::remove(path);
  std::printf("fdatasync of a page: %.3f ms, 99 %%: %.3f ms\n", 1e3 * quantile(times, 0.5),
              1e3 * quantile(times, 0.99));
}

std::shared_ptr<wire::submit_batch> spec_of(std::uint64_t responses) {
  auto spec = std::make_shared<wire::submit_batch>();
  spec->batch_key = "bench";
  wire::prompt_group group;
  group.prompt_token_ids.assign(64, 7);
  group.group_size = 8;
  spec->groups.assign(responses / 8, group);
  return spec;
}

/// A batch of `responses` with eight chunks each, chunk by chunk over all of them.
/// @returns seconds that `write` took its caller.
double write_batch(journal& keeper, std::uint64_t responses, std::uint32_t chunk) {
  const batch_id b{1};
  double spent = 0;
  const auto put = [&](record what) {
    const auto began = clock::now();
    keeper.write(std::move(what));
    spent += seconds_since(began);
  };
  put(batch_submitted{b, spec_of(responses), 1, 1});
  put(batch_started{b, "cpu-f32-v1", 1});
  for (std::uint32_t round = 0; round < 8; ++round)
    for (std::uint64_t r = 0; r < responses; ++r) {
      chunk_edge edge{.id = b,
                      .ordinal = r,
                      .position = round * chunk,
                      .weight_version = 1,
                      .tokens = std::vector<token_id>(chunk, static_cast<token_id>(r)),
                      .logprobs = std::vector<float>(chunk, -0.25f),
                      .kept_masses = {}};
      put(std::move(edge));
      while (keeper.health().pending_bytes > std::size_t{64} << 20)
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
  for (std::uint64_t r = 0; r < responses; ++r)
    put(response_finished{b, r, wire::finish_reason::length});
  return spent;
}

void run(const std::string& directory, std::uint32_t chunk, std::uint64_t responses) {
  const auto path = directory + "/journal_bench.db";
  for (const auto* end : {"", "-wal", "-shm", ".lock"})
    std::filesystem::remove(path + end);
  auto opened = journal::open({.path = path});
  if (!opened) {
    std::fprintf(stderr, "%s\n", opened.error().detail.c_str());
    std::exit(2);
  }
  auto& keeper = *opened->keeper;
  std::mutex mutex;
  std::vector<double> commits;
  keeper.on_commit([&](std::uint64_t, double seconds) {
    const std::lock_guard guard{mutex};
    commits.push_back(seconds);
  });
  const auto began = clock::now();
  const auto spent = write_batch(keeper, responses, chunk);
  while (keeper.durable() < keeper.written())
    std::this_thread::sleep_for(std::chrono::microseconds{200});
  const auto wall = seconds_since(began);
  const auto records = static_cast<double>(keeper.written());
  const auto tokens = static_cast<double>(responses * 8 * chunk);
  {
    const std::lock_guard guard{mutex};
    std::printf("chunks of %u tokens, %.0f records: %.0f records/s, %.1f M tokens/s, %zu commits "
                "of %.2f ms (99 %%: %.2f ms), write %.2f us, %.2f bytes a token\n",
                chunk, records, records / wall, tokens / wall / 1e6, commits.size(),
                1e3 * quantile(commits, 0.5), 1e3 * quantile(commits, 0.99), 1e6 * spent / records,
                static_cast<double>(keeper.health().bytes) / tokens);
    commits.clear();
  }
  for (std::uint64_t i = 0; i < 200; ++i) { // one record at a time: what a result waits for
    keeper.write(epoch_promised{i});
    while (keeper.durable() < keeper.written())
      std::this_thread::sleep_for(std::chrono::microseconds{50});
    std::this_thread::sleep_for(std::chrono::milliseconds{6});
  }
  const std::lock_guard guard{mutex};
  std::printf("one record alone: %.2f ms, 99 %%: %.2f ms\n", 1e3 * quantile(commits, 0.5),
              1e3 * quantile(commits, 0.99));
}

} // namespace
} // namespace rollcast::journal

int main(int argc, char** argv) {
  const std::string directory = argc > 1 ? argv[1] : ".";
  const auto responses = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 512;
  rollcast::journal::print_fsync(directory);
  if (argc > 2) {
    rollcast::journal::run(directory, static_cast<std::uint32_t>(std::atoi(argv[2])), responses);
    return 0;
  }
  for (const std::uint32_t chunk : {64u, 512u, 2048u})
    rollcast::journal::run(directory, chunk, responses);
  return 0;
}
