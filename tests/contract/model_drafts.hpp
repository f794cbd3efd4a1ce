#pragma once

#include "engine/backend/cpu_drafting.hpp"
#include "engine/backend/thread_pool.hpp"
#include "engine/draft/measure_steps.hpp"
#include "engine/draft/speculator.hpp"
#include "tests/contract/engine_settings.hpp"
#include "tests/support/draft_checkpoint.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::test {

inline constexpr model_draft_options chain_of_3{.steps = 3, .topk = 1, .tokens = 4};
inline constexpr model_draft_options tree_of_12{.steps = 4, .topk = 3, .tokens = 12};

/// An engine's options with rows for so many drafted tokens.
inline cpu_backend_options with_rows_for_drafts(cpu_backend_options options) {
  options.logit_rows_max = options.rows_max;
  return options;
}

/// A drafter's checkpoint, loaded for a target, and the drafters that go with its engines.
class drafts_of {
public:
  drafts_of(const std::filesystem::path& directory, draft_kind kind, const model_config& target,
            std::string_view profile)
    : profile_(*find_profile(profile)) {
    auto loaded = load_draft(directory, kind, target, profile_.arithmetic);
    EXPECT_TRUE(loaded) << loaded.error().detail;
    if (loaded)
      draft_ = std::move(*loaded);
  }
  /// Of a checkpoint in memory.
  drafts_of(const draft_checkpoint& made, draft_kind kind, const model_config& target,
            std::string_view profile)
    : profile_(*find_profile(profile)) {
    const temporary_directory directory;
    made.write(directory.path());
    auto loaded = load_draft(directory.path(), kind, target, profile_.arithmetic);
    EXPECT_TRUE(loaded) << loaded.error().detail;
    if (loaded)
      draft_ = std::move(*loaded);
  }

  const draft_model& draft() const { return draft_; }

  std::shared_ptr<model_drafter> make(const device_shape& target, std::uint32_t batch_max,
                                      const model_draft_options& how, std::uint32_t threads = 1,
                                      std::shared_ptr<thread_pool> pool = nullptr) const {
    cpu_backend_options options;
    options.threads = threads;
    options.pool = std::move(pool);
    auto model = make_cpu_drafting(draft_, profile_, options, target, batch_max, how);
    EXPECT_TRUE(model) << model.error().detail;
    return model ? std::make_shared<model_drafter>(std::move(*model), how) : nullptr;
  }

private:
  numerics_profile profile_;
  draft_model draft_;
};

/// What the drafters of a rollout's engines did in all.
inline model_draft_figures total_of(const std::vector<std::shared_ptr<model_drafter>>& drafters) {
  model_draft_figures out;
  for (const auto& d : drafters) {
    out.tokens += d->figures().tokens;
    out.accepted += d->figures().accepted;
    out.restarts += d->figures().restarts;
    out.starved += d->figures().starved;
    out.passes += d->figures().passes;
    out.contexts += d->figures().contexts;
  }
  return out;
}

/// Runs a rollout in a setting, every engine with a drafter of its own.
inline std::map<std::uint64_t, finished_response>
run_with_model(const std::shared_ptr<const model_weights>& weights, std::string_view profile,
               const rollout& work, const setting& s, const drafts_of& drafts,
               const model_draft_options& how, model_draft_figures* figures = nullptr) {
  std::vector<engine> engines;
  std::vector<std::shared_ptr<model_drafter>> drafters;
  for (std::size_t i = 0; i < s.engines; ++i) {
    engines.emplace_back(make_device(weights, profile, with_rows_for_drafts(s.device)), s.limits);
    drafters.push_back(drafts.make(engines.back().device().shape(),
                                   engines.back().limits().batch_max, how, s.device.threads));
    engines.back().speculate(drafters.back());
  }
  auto done = run_rollout(work, engines, s.how);
  if (figures != nullptr)
    *figures = total_of(drafters);
  return done;
}

inline void expect_same(const std::map<std::uint64_t, finished_response>& expected,
                        const std::map<std::uint64_t, finished_response>& got,
                        const std::string& what) {
  for (const auto& [id, response] : expected)
    EXPECT_TRUE(same_bits(response, got.at(id))) << what << ", response " << id;
}

} // namespace rollcast::test
