// Goal: what one side encodes the other reads back equal, field by field and bit by bit.
// Method: random messages of every kind, seeds printed on failure; the defaults and the inheritance
// of sampling with messages built by the generated code, as another controller would.

#include "cluster/wire/codec.hpp"
#include "proto/rollcast.pb.h"
#include "tests/unit/wire/random_messages.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <limits>

namespace rollcast::wire {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span{text});
}

/// A batch as another controller may send it: only what is required.
::rollcast::v1::Envelope smallest_batch() {
  ::rollcast::v1::Envelope envelope;
  envelope.set_version(1);
  envelope.set_request_id(7);
  auto* batch = envelope.mutable_submit_batch();
  batch->set_batch_key("k");
  batch->mutable_sampling()->set_max_new_tokens(5);
  auto* group = batch->add_groups();
  group->add_prompt_token_ids(50);
  group->set_group_size(2);
  return envelope;
}

TEST(wire_codec, reads_back_every_request) {
  for (std::uint64_t seed = 1; seed <= 2'000; ++seed) {
    prng rng{seed};
    const auto id = 1 + rng.next() / 2;
    const auto sent = random_request(rng);
    const auto got = decode_request(bytes_of(encode(id, sent)));
    ASSERT_TRUE(got) << "seed " << seed << ": " << got.error().detail;
    EXPECT_EQ(got->request_id, id) << "seed " << seed;
    ASSERT_TRUE(got->body == sent) << "seed " << seed << ", kind " << sent.index();
  }
}

TEST(wire_codec, reads_back_every_event) {
  for (std::uint64_t seed = 1; seed <= 2'000; ++seed) {
    prng rng{seed};
    const auto id = rng.next();
    const auto sent = random_event(rng);
    const auto got = decode_event(bytes_of(encode(id, sent)));
    ASSERT_TRUE(got) << "seed " << seed << ": " << got.error().detail;
    EXPECT_EQ(got->request_id, id) << "seed " << seed;
    ASSERT_TRUE(got->body == sent) << "seed " << seed << ", kind " << sent.index();
  }
}

TEST(wire_codec, keeps_the_bits_of_every_float) {
  using limits_f = std::numeric_limits<float>;
  response_ready sent;
  sent.logprobs = {-0.0f,
                   limits_f::denorm_min(),
                   -limits_f::max(),
                   -limits_f::infinity(),
                   std::bit_cast<float>(0xffc12345u),
                   -0x1.fffffep-1f};
  sent.kept_mass.assign(sent.logprobs.rbegin(), sent.logprobs.rend());
  sent.token_ids.resize(sent.logprobs.size());
  const auto got = decode_event(bytes_of(encode(0, sent)));
  ASSERT_TRUE(got);
  const auto& response = std::get<response_ready>(got->body);
  ASSERT_EQ(response.logprobs.size(), sent.logprobs.size());
  ASSERT_EQ(response.kept_mass.size(), sent.kept_mass.size());
  for (std::size_t i = 0; i < sent.logprobs.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(response.logprobs[i]),
              std::bit_cast<std::uint32_t>(sent.logprobs[i]))
      << i;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(response.kept_mass[i]),
              std::bit_cast<std::uint32_t>(sent.kept_mass[i]))
      << i;
  }
}

TEST(wire_codec, gives_absent_fields_their_documented_values) {
  const auto got = decode_request(bytes_of(smallest_batch().SerializeAsString()));
  ASSERT_TRUE(got) << got.error().detail;
  submit_batch expected;
  expected.batch_key = "k";
  expected.sampling.max_new_tokens = 5;
  expected.groups = {
    {.id = "", .prompt_token_ids = {50}, .group_size = 2, .seed = {}, .sampling = {}}};
  EXPECT_TRUE(got->body == request{expected});
  EXPECT_EQ(expected.sampling.temperature, 1.0f);
  EXPECT_EQ(expected.sampling.top_p, 1.0f);
}

TEST(wire_codec, lets_a_group_override_sampling_field_by_field) {
  auto envelope = smallest_batch();
  auto* batch = envelope.mutable_submit_batch();
  batch->mutable_sampling()->set_top_k(40);
  batch->mutable_sampling()->mutable_stop_token_ids()->add_ids(3);
  auto* own = batch->mutable_groups(0)->mutable_sampling();
  own->set_temperature(0); // The wire's zero must not be taken for absent.
  own->mutable_stop_token_ids();
  const auto got = decode_request(bytes_of(envelope.SerializeAsString()));
  ASSERT_TRUE(got) << got.error().detail;
  const auto& decoded = std::get<submit_batch>(got->body);
  ASSERT_TRUE(decoded.groups[0].sampling);
  const auto& sampling = *decoded.groups[0].sampling;
  EXPECT_EQ(sampling.temperature, 0.0f);
  EXPECT_EQ(sampling.top_k, 40u) << "inherited";
  EXPECT_EQ(sampling.max_new_tokens, 5u) << "inherited";
  EXPECT_TRUE(sampling.stop_token_ids.empty()) << "an empty list replaces the batch's";
  EXPECT_EQ(decoded.sampling.stop_token_ids, std::vector<token_id>{3});
}

TEST(wire_codec, gives_absent_fields_of_weights_and_scores_their_documented_values) {
  ::rollcast::v1::Envelope envelope;
  envelope.set_version(1);
  envelope.set_request_id(7);
  const auto decoded = [&] {
    auto got = decode_request(bytes_of(envelope.SerializeAsString()));
    EXPECT_TRUE(got) << got.error().detail;
    return got ? got->body : request{get_status{}};
  };
  envelope.mutable_begin_weights();
  EXPECT_TRUE(decoded() == request{begin_weights{}});
  envelope.mutable_commit_weights()->set_epoch(3);
  EXPECT_TRUE(decoded() == (request{commit_weights{.epoch = 3, .hash = {}, .tensors = {}}}));
  auto* sequence = envelope.mutable_score()->add_sequences();
  sequence->add_token_ids(5);
  sequence->set_prompt_tokens(1);
  EXPECT_TRUE(decoded()
              == (request{score{.sequences = {{.token_ids = {5}}}, .weight_version = {}}}));
  sequence->set_temperature(0); // the wire's zero must not be taken for absent
  EXPECT_EQ(std::get<score>(decoded()).sequences[0].temperature, 0.0f);
}

TEST(wire_codec, refuses_weights_that_have_no_place_in_our_types) {
  ::rollcast::v1::Envelope envelope;
  envelope.set_version(1);
  envelope.set_request_id(7);
  const auto refusal = [&] {
    const auto got = decode_request(bytes_of(envelope.SerializeAsString()));
    return got ? std::string{"taken"}
               : std::string{to_string(got.error().code)} + ": " + got.error().detail;
  };
  envelope.mutable_begin_weights()->set_flip(static_cast<::rollcast::v1::WeightFlip>(2));
  EXPECT_EQ(refusal(), "frame_malformed: weight flip 2 is none that we know: 0 is between batches, "
                       "1 at chunk edges");
  envelope.mutable_load_weights()->set_directory("/d");
  envelope.mutable_load_weights()->set_flip(static_cast<::rollcast::v1::WeightFlip>(-1));
  EXPECT_EQ(refusal().substr(0, 31), "frame_malformed: weight flip -1");
  for (const auto* hash :
       {"0123456789abcdef0123456789abcde", "0123456789ABCDEF0123456789ABCDEF",
        "0123456789abcdef0123456789abcdef0", "+123456789abcdef0123456789abcdef"}) {
    envelope.mutable_commit_weights()->set_content_hash(hash);
    EXPECT_EQ(refusal(), "bad_checkpoint: content_hash '" + std::string{hash}
                           + "' is not 32 lower-case hexadecimal digits");
  }
  auto* bucket = envelope.mutable_weight_bucket();
  bucket->set_bucket(4);
  auto* slice = bucket->add_slices();
  slice->set_dtype("I64");
  EXPECT_EQ(refusal(), "bad_checkpoint: bucket 4, slice 0: dtype 'I64', give F32, BF16 or F16");
  slice->set_dtype("a\nb");
  EXPECT_EQ(refusal(), "bad_checkpoint: bucket 4, slice 0: dtype 3 bytes, give F32, BF16 or F16");
  slice->set_dtype("F32");
  for (int i = 0; i < 9; ++i)
    slice->add_shape(1);
  EXPECT_EQ(refusal(), "bad_checkpoint: bucket 4, slice 0: 9 dimensions, at most 8 are allowed");
}

TEST(wire_codec, refuses_an_answer_whose_content_hash_is_none) {
  ::rollcast::v1::Envelope envelope;
  envelope.set_version(1);
  envelope.mutable_weights_served()->set_epoch(3);
  const auto got = decode_event(bytes_of(envelope.SerializeAsString()));
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, errc::frame_malformed);
  EXPECT_EQ(got.error().detail, "epoch 3 is served with a content hash that is none: ''");
}

TEST(wire_codec, carries_every_error_code_by_name) {
  for (int code = 0; code < 256; ++code) {
    const auto sent = static_cast<errc>(code);
    if (to_string(sent) == "unknown")
      continue;
    const auto got = decode_event(bytes_of(encode(1, request_failed{sent, "m", "", ""})));
    ASSERT_TRUE(got);
    EXPECT_EQ(std::get<request_failed>(got->body).code, sent);
  }
}

TEST(wire_codec, shows_an_error_code_it_does_not_know) {
  ::rollcast::v1::Envelope envelope;
  envelope.set_version(1);
  envelope.mutable_error()->set_code("moon_phase");
  envelope.mutable_error()->set_message("not full");
  const auto got = decode_event(bytes_of(envelope.SerializeAsString()));
  ASSERT_TRUE(got);
  EXPECT_EQ(std::get<request_failed>(got->body).code, errc::unimplemented);
  EXPECT_EQ(std::get<request_failed>(got->body).message, "moon_phase: not full");
}

TEST(wire_codec, refuses_a_result_that_contradicts_itself) {
  const auto detail_of = [](auto&& spoil) {
    ::rollcast::v1::Envelope envelope;
    envelope.set_version(1);
    auto* r = envelope.mutable_result();
    r->add_token_ids(1);
    r->add_token_ids(2);
    r->add_logprobs(-1);
    r->add_logprobs(-2);
    r->set_finish_reason(::rollcast::v1::FINISH_REASON_STOP);
    auto* span = r->add_weight_versions();
    span->set_end(2);
    spoil(*r);
    const auto got = decode_event(bytes_of(envelope.SerializeAsString()));
    return got ? std::string{} : got.error().detail;
  };
  const auto has = [](const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_EQ(detail_of([](auto&) {}), "");
  EXPECT_TRUE(has(detail_of([](auto& r) { r.add_logprobs(-3); }), "3 logprobs"));
  EXPECT_TRUE(has(detail_of([](auto& r) { r.add_kept_mass(1); }), "1 kept_mass for 2 tokens"));
  EXPECT_TRUE(has(detail_of([](auto& r) { r.clear_finish_reason(); }), "finish_reason 0"));
  EXPECT_TRUE(
    has(detail_of([](auto& r) { r.mutable_weight_versions(0)->set_end(1); }), "token 1 of 2"));
  EXPECT_TRUE(
    has(detail_of([](auto& r) { r.mutable_weight_versions(0)->set_start(1); }), "span 1..2"));
  const auto of_experts = [&](std::uint32_t layers, std::uint32_t id_bytes, std::size_t bytes) {
    return detail_of([&](auto& r) {
      auto* experts = r.mutable_routed_experts();
      experts->set_layers(layers);
      experts->set_per_token(3);
      experts->set_id_bytes(id_bytes);
      experts->set_ids(std::string(bytes, 'x'));
    });
  };
  EXPECT_EQ(of_experts(2, 2, 24), "");
  EXPECT_TRUE(has(of_experts(2, 2, 25), "25 bytes of routed experts"));
  EXPECT_TRUE(has(of_experts(0, 2, 24), "24 bytes of routed experts, 0 layers"));
  EXPECT_TRUE(has(of_experts(2, 4, 24), "ids of 4 bytes"));
  EXPECT_TRUE(has(of_experts(1u << 31, 2, 0), "layers of 3"));
}

} // namespace
} // namespace rollcast::wire
