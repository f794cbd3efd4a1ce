// Goal: every bound of a request is held at its edge, with its own code and a line of numbers.
// Method: a good batch with one thing spoilt at a time; both sides of each edge.

#include "cluster/wire/validate.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace rollcast::wire {
namespace {

submit_batch good_batch() {
  submit_batch batch;
  batch.batch_key = "k";
  batch.sampling.max_new_tokens = 16;
  batch.groups = {
    {.id = "first", .prompt_token_ids = {1}, .group_size = 1, .seed = {}, .sampling = {}},
    {.id = "second", .prompt_token_ids = {2, 3}, .group_size = 4, .seed = {}, .sampling = {}}};
  return batch;
}

struct spoilt {
  const char* what;
  errc code;        ///< `ok`: just inside the bound.
  const char* says; ///< Part of the line.
  std::function<void(submit_batch&)> spoil;
};

void expect_each(const std::vector<spoilt>& cases) {
  for (const auto& c : cases) {
    auto batch = good_batch();
    c.spoil(batch);
    const auto got = validate(batch);
    const auto detail = got ? std::string{} : got.error().detail;
    EXPECT_EQ(got ? errc::ok : got.error().code, c.code) << c.what << ": " << detail;
    EXPECT_NE(detail.find(c.says), std::string::npos) << c.what << ": " << detail;
    EXPECT_EQ(detail.find('\n'), std::string::npos) << c.what;
  }
}

TEST(wire_validate, holds_the_bounds_of_groups) {
  using b = submit_batch;
  expect_each({
    {"good", errc::ok, "", [](b&) {}},
    {"no groups", errc::bad_prompt, "no groups", [](b& x) { x.groups.clear(); }},
    {"empty prompt", errc::bad_prompt, "group 1 (id second): the prompt is empty",
     [](b& x) { x.groups[1].prompt_token_ids.clear(); }},
    {"no responses", errc::bad_prompt, "group_size 0 is outside 1..65536",
     [](b& x) { x.groups[1].group_size = 0; }},
    {"largest group", errc::ok, "", [](b& x) { x.groups[1].group_size = limits.group_size; }},
    {"too large a group", errc::bad_prompt, "group_size 65537",
     [](b& x) { x.groups[1].group_size = limits.group_size + 1; }},
    {"token id 0", errc::ok, "",
     [](b& x) {
       x.groups[1].prompt_token_ids = {5, 0};
     }},
    {"negative token id", errc::bad_prompt,
     "group 1 (id second): prompt: token id -7 at position 1",
     [](b& x) {
       x.groups[1].prompt_token_ids = {5, -7};
     }},
    {"long id", errc::bad_prompt, "id of 1025 bytes",
     [](b& x) { x.groups[0].id = std::string(1025, 'x'); }},
    {"id with a newline", errc::bad_prompt, "control", [](b& x) { x.groups[0].id = "a\nb"; }},
    {"most groups", errc::ok, "", [](b& x) { x.groups.assign(limits.groups, x.groups[0]); }},
    {"too many groups", errc::frame_too_large, "65537 groups",
     [](b& x) { x.groups.assign(limits.groups + 1, x.groups[0]); }},
    {"too many responses", errc::frame_too_large, "1000001 responses",
     [](b& x) {
       x.groups.assign(1'000, x.groups[0]);
       for (auto& group : x.groups)
         group.group_size = 1'000;
       x.groups[7].group_size = 1'001;
     }},
  });
}

TEST(wire_validate, holds_the_bounds_of_sampling) {
  using b = submit_batch;
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_each({
    {"greedy", errc::ok, "", [](b& x) { x.sampling.temperature = 0; }},
    {"negative temperature", errc::bad_sampling, "batch: temperature -0.5",
     [](b& x) { x.sampling.temperature = -0.5f; }},
    {"tiny temperature", errc::bad_sampling, "use 0 for greedy",
     [](b& x) { x.sampling.temperature = 1e-7f; }},
    {"infinite temperature", errc::bad_sampling, "temperature inf",
     [=](b& x) { x.sampling.temperature = inf; }},
    {"NaN temperature", errc::bad_sampling, "temperature",
     [=](b& x) { x.sampling.temperature = nan; }},
    {"top_p 1", errc::ok, "", [](b& x) { x.sampling.top_p = 1; }},
    {"top_p 0", errc::bad_sampling, "top_p 0", [](b& x) { x.sampling.top_p = 0; }},
    {"top_p above 1", errc::bad_sampling, "top_p 1.00",
     [](b& x) { x.sampling.top_p = std::nextafter(1.0f, 2.0f); }},
    {"top_p NaN", errc::bad_sampling, "top_p", [=](b& x) { x.sampling.top_p = nan; }},
    {"min_p 1", errc::ok, "", [](b& x) { x.sampling.min_p = 1; }},
    {"min_p below 0", errc::bad_sampling, "min_p -0.1", [](b& x) { x.sampling.min_p = -0.1f; }},
    {"min_p NaN", errc::bad_sampling, "min_p", [=](b& x) { x.sampling.min_p = nan; }},
    {"no limit given", errc::bad_sampling, "max_new_tokens 0",
     [](b& x) { x.sampling.max_new_tokens = 0; }},
    {"largest limit", errc::ok, "", [](b& x) { x.sampling.max_new_tokens = limits.new_tokens; }},
    {"too large a limit", errc::bad_sampling, "max_new_tokens 4194305",
     [](b& x) { x.sampling.max_new_tokens = limits.new_tokens + 1; }},
    {"min_new_tokens at the limit", errc::ok, "", [](b& x) { x.sampling.min_new_tokens = 16; }},
    {"min_new_tokens above it", errc::bad_sampling, "min_new_tokens 17 is above max_new_tokens 16",
     [](b& x) { x.sampling.min_new_tokens = 17; }},
    {"negative stop id", errc::bad_sampling, "stop_token_ids: token id -1",
     [](b& x) { x.sampling.stop_token_ids = {-1}; }},
    {"too many stop ids", errc::bad_sampling, "257 stop_token_ids",
     [](b& x) { x.sampling.stop_token_ids.assign(257, 1); }},
    {"a group's own", errc::bad_sampling, "group 1 (id second): top_p 2",
     [](b& x) {
       x.groups[1].sampling = x.sampling;
       x.groups[1].sampling->top_p = 2;
     }},
  });
}

TEST(wire_validate, holds_the_bounds_of_names) {
  using b = submit_batch;
  expect_each({
    {"no key", errc::bad_config, "batch_key of 0 bytes", [](b& x) { x.batch_key.clear(); }},
    {"longest key", errc::ok, "", [](b& x) { x.batch_key.assign(128, 'k'); }},
    {"too long a key", errc::bad_config, "batch_key of 129",
     [](b& x) { x.batch_key.assign(129, 'k'); }},
    {"a key that breaks a log", errc::bad_config, "control", [](b& x) { x.batch_key = "a\nb"; }},
    {"too long a policy", errc::bad_config, "policy name", [](b& x) { x.policy.assign(129, 'p'); }},
  });
}

} // namespace
} // namespace rollcast::wire
