#include "cluster/wire/batch_hash.hpp"

#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace rollcast::wire {

namespace {

/// Appends fields to a byte string; lengths go before contents, so that no two differ only in where
/// one field ends.
class hasher {
public:
  void number(std::uint64_t x) { bytes_.append(reinterpret_cast<const char*>(&x), sizeof x); }
  void real(float x) { number(std::bit_cast<std::uint32_t>(x)); }
  void text(const std::string& x) {
    number(x.size());
    bytes_ += x;
  }
  void tokens(const std::vector<token_id>& x) {
    number(x.size());
    bytes_.append(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(token_id));
  }
  void sampling(const sampling_params& x) {
    real(x.temperature);
    real(x.top_p);
    number(x.top_k);
    real(x.min_p);
    number(x.max_new_tokens);
    number(x.min_new_tokens);
    tokens(x.stop_token_ids);
    number(x.ignore_eos ? 1 : 0);
  }
  template <class T, class F>
  void maybe(const std::optional<T>& x, F f) {
    number(x.has_value() ? 1 : 0);
    if (x)
      f(*x);
  }
  content_hash digest() const { return hash_bytes(std::as_bytes(std::span{bytes_})); }

private:
  std::string bytes_;
};

} // namespace

content_hash hash_of(const submit_batch& spec) {
  hasher h;
  h.number(spec.groups.size());
  for (const auto& group : spec.groups) {
    h.text(group.id);
    h.tokens(group.prompt_token_ids);
    h.number(group.group_size);
    h.maybe(group.seed, [&](std::uint64_t x) { h.number(x); });
    h.maybe(group.sampling, [&](const auto& x) { h.sampling(x); });
  }
  h.sampling(spec.sampling);
  h.number(spec.seed);
  h.maybe(spec.required_weight_version, [&](std::uint64_t x) { h.number(x); });
  h.text(spec.policy);
  h.maybe(spec.chunk_tokens, [&](std::uint32_t x) { h.number(x); });
  h.number(spec.force_migration ? 1 : 0);
  h.number(spec.echo_prompts ? 1 : 0);
  if (spec.routed_experts_from) // journals know batches from before there was this field
    h.number(*spec.routed_experts_from);
  return h.digest();
}

} // namespace rollcast::wire
