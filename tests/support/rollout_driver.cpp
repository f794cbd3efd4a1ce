#include "tests/support/rollout_driver.hpp"

#include "engine/base/hash.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <span>

namespace rollcast::test {

namespace {

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(std::as_bytes(std::span{a}), std::as_bytes(std::span{b}));
}

} // namespace

bool same_bits(const finished_response& a, const finished_response& b) {
  return a.tokens == b.tokens && same(a.logprobs, b.logprobs) && same(a.kept_masses, b.kept_masses)
         && a.experts == b.experts && a.why == b.why;
}

rollout mixed_rollout(std::uint32_t vocabulary, std::size_t responses, std::uint32_t new_tokens,
                      std::uint64_t seed) {
  prng random{seed};
  rollout work;
  for (std::size_t i = 0; i < responses; ++i) {
    chunk_request request;
    request.response = {i + 1};
    const auto prompt = 1 + random.below(i % 5 == 0 ? 150 : 20);
    for (std::uint64_t t = 0; t < prompt; ++t)
      request.tokens.push_back(static_cast<token_id>(random.below(vocabulary)));
    request.prompt_tokens = static_cast<std::uint32_t>(prompt);
    auto& how = request.sampling;
    how.temperature = i % 4 == 0 ? 0.0f : i % 4 == 1 ? 0.8f : 1.0f;
    how.top_p = i % 3 == 1 ? 0.9f : 1.0f;
    how.top_k = i % 7 == 2 ? 20 : 0;
    how.min_p = i % 6 == 3 ? 0.02f : 0.0f;
    how.max_new_tokens = 1 + static_cast<std::uint32_t>(random.below(new_tokens));
    how.min_new_tokens = i % 2 == 0 ? how.max_new_tokens / 2 : 0;
    how.seed = response_seed(seed, i, 0);
    how.stop_token_ids = {static_cast<token_id>(random.below(vocabulary))};
    work.push_back(request);
  }
  return work;
}

namespace {

/// Moves a response's KV to another engine, if there is room for it.
void move_kv(const engine& from, engine& to, response_id response) {
  kv_bytes image;
  const auto manifest = from.export_kv(response, image);
  ASSERT_TRUE(manifest) << manifest.error().detail;
  const auto imported = to.import_kv(*manifest, image);
  EXPECT_TRUE(imported || imported.error().code == errc::out_of_kv_blocks);
}

} // namespace

std::map<std::uint64_t, finished_response>
run_rollout(const rollout& work, std::vector<engine>& engines, const drive& how) {
  std::map<std::uint64_t, finished_response> done;
  std::vector<std::deque<chunk_request>> queues(engines.size());
  std::map<std::uint64_t, chunk_request> latest;
  for (std::size_t i = 0; i < work.size(); ++i) {
    chunk_request request = work[i];
    request.reserve = how.reserve;
    request.generate_max =
      how.chunk_tokens == 0 ? request.sampling.max_new_tokens : how.chunk_tokens;
    auto& response = done[request.response.value];
    response.prompt = request.tokens;
    response.temperature = request.sampling.temperature;
    queues[i % engines.size()].push_back(request);
  }
  const auto edge = [&](std::size_t at, const chunk_report& report) {
    auto& response = done.at(report.response.value);
    response.tokens.insert(response.tokens.end(), report.tokens.begin(), report.tokens.end());
    response.logprobs.insert(response.logprobs.end(), report.logprobs.begin(),
                             report.logprobs.end());
    response.kept_masses.insert(response.kept_masses.end(), report.kept_masses.begin(),
                                report.kept_masses.end());
    response.experts.insert(response.experts.end(), report.experts.begin(), report.experts.end());
    response.why = report.why;
    if (report.why != chunk_end::budget)
      return;
    chunk_request next = latest.at(report.response.value);
    next.tokens.insert(next.tokens.end(), report.tokens.begin(), report.tokens.end());
    std::size_t target = at;
    if (!engines[at].parked(report.response)) { // cut before it had any KV
      queues[at].push_back(next);
      return;
    }
    if (how.kv == between_chunks::move) {
      target = (at + 1) % engines.size();
      move_kv(engines[at], engines[target], report.response);
    }
    if (how.kv == between_chunks::drop || target != at) {
      EXPECT_TRUE(engines[at].release(report.response));
    }
    queues[target].push_back(next);
  };
  const auto busy = [&] {
    for (std::size_t at = 0; at < engines.size(); ++at)
      if (engines[at].has_work() || !queues[at].empty())
        return true;
    return false;
  };
  while (busy()) {
    for (std::size_t at = 0; at < engines.size(); ++at) {
      while (!queues[at].empty()) {
        if (auto ok = engines[at].admit(queues[at].front()); !ok) {
          EXPECT_EQ(ok.error().code, errc::out_of_kv_blocks) << ok.error().detail;
          // Wait for running ones; with none left, the parked KV of those who wait is in the way.
          if (!engines[at].has_work())
            for (const auto& waiting : queues[at])
              engines[at].release(waiting.response);
          break;
        }
        latest[queues[at].front().response.value] = queues[at].front();
        queues[at].pop_front();
      }
      for (const auto& report : engines[at].step())
        edge(at, report);
      if (how.cut_every > 0 && engines[at].stats().steps % how.cut_every == 0)
        for (const auto& report : engines[at].cut())
          edge(at, report);
    }
  }
  return done;
}

} // namespace rollcast::test
