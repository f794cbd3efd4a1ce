#include "engine/step/engine_state.hpp"

#include <algorithm>
#include <string>

namespace rollcast {

namespace {

std::uint64_t groups_of(std::uint32_t tokens) noexcept {
  return (tokens + kernels::kv_group - 1) / kernels::kv_group;
}

} // namespace

bool engine::state::is_parked(response_id response) const noexcept {
  const auto it = sequences_.find(response);
  return it != sequences_.end() && it->second->state == sequence_state::parked;
}

result<kv_manifest> engine::state::export_kv(response_id response, kv_bytes& image) const {
  if (!is_parked(response))
    return fail(errc::out_of_kv_blocks,
                "no KV of response " + std::to_string(response.value) + " is parked here");
  const sequence& seq = *sequences_.at(response);
  const std::uint64_t groups = groups_of(seq.cached);
  image.resize(groups * device->shape().kv_group_bytes);
  device->export_kv(seq.blocks, groups, image);
  return kv_manifest{response,
                     seq.cached,
                     image.size(),
                     seq.prefix,
                     hash_bytes(std::span<const std::byte>{image}),
                     device->weights_hash()};
}

result<void> engine::state::import_kv(const kv_manifest& manifest,
                                      std::span<const std::byte> image) {
  const std::uint64_t groups = groups_of(manifest.tokens);
  const std::uint64_t bytes = groups * device->shape().kv_group_bytes;
  if (manifest.tokens == 0 || manifest.tokens >= limits.context_max || image.size() != bytes)
    return fail(errc::frame_malformed, "KV image of " + std::to_string(image.size()) + " bytes for "
                                         + std::to_string(manifest.tokens) + " tokens, expected "
                                         + std::to_string(bytes));
  // An image may come late, out of another worker or the spill space, after the weights changed.
  if (manifest.weights != device->weights_hash())
    return fail(errc::stale_epoch, "KV image of response " + std::to_string(manifest.response.value)
                                     + " was computed with weights " + to_string(manifest.weights)
                                     + ", those used here are "
                                     + to_string(device->weights_hash()));
  const content_hash found = hash_bytes(image);
  if (found != manifest.content)
    return fail(errc::frame_malformed,
                "KV image of response " + std::to_string(manifest.response.value) + " hashes to "
                  + to_string(found) + ", its manifest says " + to_string(manifest.content));
  release(manifest.response);
  auto seq = std::make_unique<sequence>();
  seq->id = manifest.response;
  seq->state = sequence_state::parked;
  seq->prefix = manifest.prefix;
  if (!pool_.take(blocks_for(manifest.tokens), seq->blocks))
    return fail(errc::out_of_kv_blocks,
                "KV image needs " + std::to_string(blocks_for(manifest.tokens)) + " blocks, free "
                  + std::to_string(pool_.free()) + " of " + std::to_string(pool_.total()));
  seq->cached = manifest.tokens;
  device->import_kv(seq->blocks, groups, image);
  sequences_.emplace(seq->id, std::move(seq));
  return {};
}

} // namespace rollcast
