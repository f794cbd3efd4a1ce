// Goal: every bound of a weight bucket, a directory and a score request is held at its edge, with
// its own code and a line of numbers.
// Method: a good request with one thing spoilt at a time; both sides of each edge.

#include "cluster/wire/validate.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace rollcast::wire {
namespace {

/// Two slices: the second half of a bf16 matrix [2, 4], and one f32 number.
weight_bucket good_bucket() {
  return {.epoch = 3,
          .bucket = 1,
          .slices = {{.name = "w",
                      .type = kernels::dtype::bf16,
                      .shape = {2, 4},
                      .offset = 8,
                      .data = std::string(8, 'x')},
                     {.name = "b",
                      .type = kernels::dtype::f32,
                      .shape = {},
                      .offset = 0,
                      .data = std::string(4, 'x')}}};
}

score good_score() {
  return {.sequences = {{.token_ids = {1, 2, 3}, .prompt_tokens = 2},
                        {.token_ids = {4}, .prompt_tokens = 1, .temperature = 0}},
          .weight_version = {}};
}

template <class Request>
struct spoilt {
  const char* what;
  errc code;        ///< `ok`: just inside the bound.
  const char* says; ///< Part of the line.
  std::function<void(Request&)> spoil;
};

template <class Request>
void expect_each(const Request& good, const std::vector<spoilt<Request>>& cases) {
  for (const auto& c : cases) {
    auto spoiled = good;
    c.spoil(spoiled);
    const auto got = validate(spoiled);
    const auto detail = got ? std::string{} : got.error().detail;
    EXPECT_EQ(got ? errc::ok : got.error().code, c.code) << c.what << ": " << detail;
    EXPECT_NE(detail.find(c.says), std::string::npos) << c.what << ": " << detail;
    EXPECT_EQ(detail.find('\n'), std::string::npos) << c.what;
  }
}

TEST(wire_validate_weights, holds_the_bounds_of_names_and_numbers) {
  using b = weight_bucket;
  expect_each<b>(
    good_bucket(),
    {
      {"good", errc::ok, "", [](b&) {}},
      {"number 0", errc::bad_checkpoint, "number buckets from 1", [](b& x) { x.bucket = 0; }},
      {"no slices", errc::bad_checkpoint, "bucket 1 has no slices", [](b& x) { x.slices.clear(); }},
      {"no name", errc::bad_checkpoint, "bucket 1, slice 1: a tensor name of 0 bytes",
       [](b& x) { x.slices[1].name.clear(); }},
      {"longest name", errc::ok, "", [](b& x) { x.slices[1].name.assign(512, 'n'); }},
      {"too long a name", errc::bad_checkpoint, "513 bytes; give 1..512",
       [](b& x) { x.slices[1].name.assign(513, 'n'); }},
      {"a name that breaks a log", errc::bad_checkpoint, "control",
       [](b& x) { x.slices[1].name = "a\nb"; }},
      {"most slices", errc::ok, "", [](b& x) { x.slices.assign(limits.slices, x.slices[1]); }},
      {"too many slices", errc::frame_too_large, "4097 slices",
       [](b& x) { x.slices.assign(limits.slices + 1, x.slices[1]); }},
    });
}

TEST(wire_validate_weights, holds_the_bounds_of_shapes) {
  using b = weight_bucket;
  constexpr auto huge = std::numeric_limits<std::size_t>::max();
  expect_each<b>(
    good_bucket(),
    {
      {"most dimensions", errc::ok, "", [](b& x) { x.slices[0].shape = {1, 1, 1, 1, 1, 1, 2, 4}; }},
      {"too many dimensions", errc::bad_checkpoint, "slice 0 (w): 9 dimensions, at most 8",
       [](b& x) { x.slices[0].shape = {1, 1, 1, 1, 1, 1, 1, 2, 4}; }},
      {"an empty tensor", errc::bad_checkpoint, "shape [2, 0, 4] is empty",
       [](b& x) {
         x.slices[0].shape = {2, 0, 4};
       }},
      {"the largest tensor", errc::ok, "",
       [](b& x) {
         x.slices[0].shape = {1u << 15, 1u << 20};
       }},
      {"too large a tensor", errc::bad_checkpoint, "more than 68719476736 bytes",
       [](b& x) {
         x.slices[0].shape = {1u << 15, (1u << 20) + 1};
       }},
      {"a product that overflows to a small one", errc::bad_checkpoint, "is empty or takes more",
       [](b& x) {
         x.slices[0].shape = {std::size_t{1} << 32, (std::size_t{1} << 32) + 1};
       }},
      {"an extent that overflows alone", errc::bad_checkpoint, "is empty or takes more",
       [=](b& x) { x.slices[0].shape = {huge}; }},
    });
}

TEST(wire_validate_weights, holds_slices_within_their_tensors) {
  using b = weight_bucket;
  expect_each<b>(
    good_bucket(),
    {
      {"no data", errc::bad_checkpoint, "slice 0 (w): a slice without data",
       [](b& x) { x.slices[0].data.clear(); }},
      {"half an element", errc::bad_checkpoint, "7 bytes are not whole elements of 2 bytes",
       [](b& x) { x.slices[0].data.resize(7); }},
      {"an offset within an element", errc::bad_checkpoint, "offset 7 and 8 bytes",
       [](b& x) { x.slices[0].offset = 7; }},
      {"beyond the end", errc::bad_checkpoint,
       "10 bytes at offset 8 end beyond the tensor, which has 16",
       [](b& x) { x.slices[0].data.resize(10); }},
      {"an offset behind the end", errc::bad_checkpoint, "8 bytes at offset 18",
       [](b& x) { x.slices[0].offset = 18; }},
      {"an offset that overflows", errc::bad_checkpoint, "end beyond",
       [](b& x) { x.slices[0].offset = std::numeric_limits<std::uint64_t>::max() - 7; }},
      {"the largest bucket", errc::ok, "",
       [](b& x) {
         x.slices[0].shape = {limits.bucket_bytes};
         x.slices[0].data.resize(limits.bucket_bytes - 4);
       }},
      {"too large a bucket", errc::frame_too_large, "bucket 1 has 33554434 bytes of data",
       [](b& x) {
         x.slices[0].shape = {limits.bucket_bytes};
         x.slices[0].data.resize(limits.bucket_bytes - 2);
       }},
    });
}

TEST(wire_validate_weights, the_largest_bucket_fits_a_message) {
  // Names, shapes and the data at their bounds at once.
  constexpr std::size_t around_a_slice = 64;
  EXPECT_LT(limits.bucket_bytes
              + limits.slices
                  * (limits.tensor_name_bytes + 10 * limits.tensor_dims + around_a_slice),
            limits.message_bytes);
}

TEST(wire_validate_weights, holds_the_bounds_of_a_directory) {
  using l = load_weights;
  expect_each<l>(
    {.directory = "/d"},
    {
      {"none", errc::bad_config, "directory of 0 bytes: give 1..4096",
       [](l& x) { x.directory.clear(); }},
      {"longest", errc::ok, "", [](l& x) { x.directory.assign(4096, 'd'); }},
      {"too long", errc::bad_config, "directory of 4097 bytes",
       [](l& x) { x.directory.assign(4097, 'd'); }},
      {"breaks a log", errc::bad_config, "control", [](l& x) { x.directory = "/d\n"; }},
    });
}

TEST(wire_validate_weights, holds_the_bounds_of_a_score) {
  using s = score;
  expect_each<s>(
    good_score(),
    {
      {"good", errc::ok, "", [](s&) {}},
      {"nothing", errc::bad_prompt, "nothing to score", [](s& x) { x.sequences.clear(); }},
      {"no prompt", errc::bad_prompt, "sequence 1: prompt_tokens 0 of 1",
       [](s& x) { x.sequences[1].prompt_tokens = 0; }},
      {"all of it prompt", errc::ok, "", [](s& x) { x.sequences[0].prompt_tokens = 3; }},
      {"more prompt than tokens", errc::bad_prompt, "prompt_tokens 4 of 3",
       [](s& x) { x.sequences[0].prompt_tokens = 4; }},
      {"no tokens", errc::bad_prompt, "of 0 tokens",
       [](s& x) { x.sequences[0].token_ids.clear(); }},
      {"a negative id", errc::bad_prompt, "sequence 0: token id -1 at position 2",
       [](s& x) { x.sequences[0].token_ids[2] = -1; }},
      {"a negative temperature", errc::bad_sampling, "sequence 0: temperature -1",
       [](s& x) { x.sequences[0].temperature = -1; }},
      {"NaN", errc::bad_sampling, "temperature",
       [](s& x) { x.sequences[0].temperature = std::numeric_limits<float>::quiet_NaN(); }},
      {"a tiny temperature", errc::bad_sampling, "use 0 for greedy",
       [](s& x) { x.sequences[0].temperature = 1e-7f; }},
      {"most sequences", errc::ok, "",
       [](s& x) { x.sequences.assign(limits.sequences, x.sequences[1]); }},
      {"too many sequences", errc::frame_too_large, "65537 sequences",
       [](s& x) { x.sequences.assign(limits.sequences + 1, x.sequences[1]); }},
      {"most tokens", errc::ok, "",
       [](s& x) { x.sequences[0].token_ids.resize(limits.scored_tokens - 1); }},
      {"too many tokens", errc::frame_too_large, "4194305 tokens",
       [](s& x) { x.sequences[0].token_ids.resize(limits.scored_tokens); }},
    });
}

TEST(wire_validate_weights, the_longest_answer_to_a_score_fits_a_message) {
  EXPECT_LT(limits.scored_tokens * sizeof(float) + limits.sequences * 16, limits.message_bytes);
}

} // namespace
} // namespace rollcast::wire
