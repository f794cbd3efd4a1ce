#include "cluster/wire/validate.hpp"

#include <optional>

namespace rollcast::wire {
namespace {

/// Bytes of a tensor of this shape, or nothing when there are none or too many.
std::optional<std::uint64_t> tensor_bytes(const tensor_slice& slice) {
  std::uint64_t bytes = kernels::size_of(slice.type);
  for (const auto extent : slice.shape) {
    if (extent == 0 || extent > limits.tensor_bytes / bytes)
      return std::nullopt;
    bytes *= extent;
  }
  return bytes;
}

std::string shown(const std::vector<std::size_t>& shape) {
  std::string text = "[";
  for (const auto extent : shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

result<void> validate_slice(const std::string& where, const tensor_slice& slice) {
  const auto refuse = [](std::string why) -> result<void> {
    return fail(errc::bad_checkpoint, std::move(why));
  };
  // The name goes into messages: it is checked before it is repeated.
  if (slice.name.empty() || slice.name.size() > limits.tensor_name_bytes
      || has_control_character(slice.name))
    return refuse(where + ": a tensor name of " + std::to_string(slice.name.size())
                  + " bytes; give 1.." + std::to_string(limits.tensor_name_bytes)
                  + " without control characters");
  const auto what = where + " (" + clipped(slice.name, 80) + "): ";
  if (slice.shape.size() > limits.tensor_dims)
    return refuse(what + too_many_dims(slice.shape.size()));
  const auto bytes = tensor_bytes(slice);
  if (!bytes)
    return refuse(what + "shape " + shown(slice.shape) + " is empty or takes more than "
                  + std::to_string(limits.tensor_bytes) + " bytes");
  if (slice.data.empty())
    return refuse(what + "a slice without data");
  const auto element = kernels::size_of(slice.type);
  if (slice.offset % element != 0 || slice.data.size() % element != 0)
    return refuse(what + "offset " + std::to_string(slice.offset) + " and "
                  + std::to_string(slice.data.size()) + " bytes are not whole elements of "
                  + std::to_string(element) + " bytes");
  if (slice.offset > *bytes || slice.data.size() > *bytes - slice.offset)
    return refuse(what + std::to_string(slice.data.size()) + " bytes at offset "
                  + std::to_string(slice.offset) + " end beyond the tensor, which has "
                  + std::to_string(*bytes));
  return {};
}

result<void> validate_sequence(const std::string& where, const score_sequence& sequence) {
  const auto tokens = sequence.token_ids.size();
  if (sequence.prompt_tokens == 0 || sequence.prompt_tokens > tokens)
    return fail(errc::bad_prompt, where + ": prompt_tokens "
                                    + std::to_string(sequence.prompt_tokens) + " of "
                                    + std::to_string(tokens) + " tokens, must be within 1.."
                                    + std::to_string(tokens));
  if (const auto wrong = wrong_with_temperature(sequence.temperature); !wrong.empty())
    return fail(errc::bad_sampling, where + ": " + wrong);
  return validate_tokens(sequence.token_ids, errc::bad_prompt, where);
}

} // namespace

std::string too_many_dims(std::size_t dims) {
  return std::to_string(dims) + " dimensions, at most " + std::to_string(limits.tensor_dims)
         + " are allowed";
}

result<void> validate(const weight_bucket& bucket) {
  const auto name = "bucket " + std::to_string(bucket.bucket);
  if (bucket.bucket == 0)
    return fail(errc::bad_checkpoint, name + ": number buckets from 1");
  if (bucket.slices.empty())
    return fail(errc::bad_checkpoint, name + " has no slices");
  if (bucket.slices.size() > limits.slices)
    return fail(errc::frame_too_large, name + " has " + std::to_string(bucket.slices.size())
                                         + " slices, at most " + std::to_string(limits.slices)
                                         + " are allowed: split it");
  std::size_t bytes = 0;
  for (std::size_t at = 0; at < bucket.slices.size(); ++at) {
    const auto where = name + ", slice " + std::to_string(at);
    if (const auto ok = validate_slice(where, bucket.slices[at]); !ok)
      return fail(ok);
    bytes += bucket.slices[at].data.size();
  }
  if (bytes > limits.bucket_bytes)
    return fail(errc::frame_too_large,
                name + " has " + std::to_string(bytes) + " bytes of data, at most "
                  + std::to_string(limits.bucket_bytes) + " are allowed: split it");
  return {};
}

result<void> validate(const load_weights& load) {
  if (load.directory.empty() || load.directory.size() > limits.directory_bytes
      || has_control_character(load.directory))
    return fail(errc::bad_config, "directory of " + std::to_string(load.directory.size())
                                    + " bytes: give 1.." + std::to_string(limits.directory_bytes)
                                    + " bytes without control characters");
  return {};
}

result<void> validate(const score& what) {
  if (what.sequences.empty())
    return fail(errc::bad_prompt, "nothing to score, give at least 1 sequence");
  if (what.sequences.size() > limits.sequences)
    return fail(errc::frame_too_large, "the request has " + std::to_string(what.sequences.size())
                                         + " sequences, at most " + std::to_string(limits.sequences)
                                         + " are allowed: split it");
  std::size_t tokens = 0;
  for (std::size_t at = 0; at < what.sequences.size(); ++at) {
    const auto& sequence = what.sequences[at];
    if (const auto ok = validate_sequence("sequence " + std::to_string(at), sequence); !ok)
      return fail(ok);
    tokens += sequence.token_ids.size();
  }
  if (tokens > limits.scored_tokens)
    return fail(errc::frame_too_large,
                "the sequences have " + std::to_string(tokens) + " tokens, at most "
                  + std::to_string(limits.scored_tokens) + " are allowed: split the request");
  return {};
}

} // namespace rollcast::wire
