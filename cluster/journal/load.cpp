#include "cluster/journal/schema.hpp"
#include "cluster/journal/store.hpp"
#include "cluster/wire/batch_hash.hpp"
#include "cluster/wire/codec.hpp"
#include "cluster/wire/validate.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::journal {

namespace {

/// Reads an image. The numbers in a file may be anything: nothing is sized or indexed by one that
/// was not checked.
class loader {
public:
  explicit loader(database& db) noexcept : db_(&db) {}

  result<image> load();

private:
  tl::unexpected<error> damaged(const std::string& what) const {
    return fail(errc::bad_config, "journal " + db_->path() + ": " + what
                                    + ": it is damaged; restore a copy, or name another file and "
                                      "submit again");
  }
  tl::unexpected<error> unreadable(const error& why) const {
    return tl::unexpected(refusal(*db_, why));
  }
  static std::string name(const batch_image& batch) {
    return "batch " + std::to_string(batch.id.value);
  }

  /// Runs a query and hands each row on.
  template <class F>
  result<void> each(const char* sql, F row) {
    auto query = db_->prepare(sql);
    if (!query)
      return unreadable(query.error());
    return rows(*query, row);
  }
  template <class F>
  result<void> rows(statement& query, F row) {
    for (;;) {
      const auto more = query.step();
      if (!more)
        return unreadable(more.error());
      if (!*more)
        return {};
      if (result<void> ok = row(query); !ok)
        return ok;
    }
  }

  result<void> load_meta();
  result<void> load_batch(statement& row);
  result<void> load_ending(statement& row, batch_image& batch);
  result<void> load_contents(batch_image& batch);
  result<void> load_finished(batch_image& batch);
  result<void> load_edges(batch_image& batch);
  /// @param prompts  Tokens of each response's prompt, by ordinal; empty unless the batch asks for
  ///                 ids of experts.
  result<void> load_edge(statement& row, batch_image& batch,
                         const std::vector<std::uint32_t>& prompts);

  database* db_;
  image found_;
  std::set<std::pair<std::string, std::string>> keys_; ///< And owners, of all batches.
};

template <class T>
void append(std::vector<T>& to, blob from) {
  const auto before = to.size();
  to.resize(before + from.size() / sizeof(T));
  if (!from.empty())
    std::memcpy(to.data() + before, from.data(), from.size() / sizeof(T) * sizeof(T));
}

/// Whether there can be such a model.
bool is_sound(const expert_layout& layout) noexcept {
  return layout.layers <= wire::limits.expert_layers
         && layout.per_token <= wire::limits.experts_per_token && layout.id_bytes <= 2;
}

result<image> loader::load() {
  if (auto ok = load_meta(); !ok)
    return fail(ok);
  auto ok = each("SELECT batch, head, spec_high, spec_low, first_response, first_group, groups,"
                 " size, submitted_ns, started_ns, profile, weight_version, ended_ns, summary,"
                 " failure_code, failure, acknowledged, tokens_acknowledged, owner, experts FROM"
                 " batches ORDER BY batch",
                 [this](statement& row) { return load_batch(row); });
  if (!ok)
    return fail(ok);
  for (auto& batch : found_.batches)
    if (batch.acknowledged <= batch.size)
      if (ok = load_contents(batch); !ok)
        return fail(ok);
  return std::move(found_);
}

result<void> loader::load_meta() {
  bool whole = false;
  auto ok = each("SELECT generation, next_batch, next_group, next_response, epoch_promised"
                 " FROM meta",
                 [&](statement& row) -> result<void> {
                   found_.generation = row.number(0);
                   found_.next_batch = row.number(1);
                   found_.next_group = row.number(2);
                   found_.next_response = row.number(3);
                   found_.epoch_promised = row.number(4);
                   whole = found_.next_response > 0 && found_.next_response < response_ids_max;
                   return {};
                 });
  if (!ok)
    return ok;
  if (!whole)
    return damaged("no numbers to go on from");
  ok = each("SELECT model, numerics, numerics_high, numerics_low, vocabulary, context_max,"
            " eos_token_ids FROM identity",
            [&](statement& row) -> result<void> {
              cluster_identity who{row.text(0),
                                   row.text(1),
                                   {row.number(2), row.number(3)},
                                   static_cast<std::uint32_t>(row.number(4)),
                                   static_cast<std::uint32_t>(row.number(5)),
                                   row.text(6)};
              if (!who.model.empty())
                found_.identity = std::move(who);
              return {};
            });
  if (!ok)
    return ok;
  return each("SELECT epoch, weights_high, weights_low FROM epoch",
              [&](statement& row) -> result<void> {
                found_.weights = {row.number(0), {row.number(1), row.number(2)}};
                return {};
              });
}

result<void> loader::load_batch(statement& row) {
  batch_image batch;
  batch.id = {row.number(0)};
  auto head = wire::stored_batch(row.bytes(1));
  if (!head)
    return damaged(name(batch) + ": " + head.error().detail);
  batch.spec = std::move(*head);
  batch.spec_hash = {row.number(2), row.number(3)};
  batch.first_response = row.number(4);
  batch.first_group = row.number(5);
  batch.groups = row.number(6);
  batch.size = row.number(7);
  batch.submitted_unix_ns = row.number(8);
  batch.started_unix_ns = row.number(9);
  batch.ended_unix_ns = row.number(12);
  batch.acknowledged = row.number(16);
  batch.tokens_acknowledged = row.number(17);
  batch.owner = row.text(18);
  const auto& known = found_;
  if (batch.size > wire::limits.responses || batch.groups > batch.size
      || batch.acknowledged > batch.size + 1 || batch.id.value >= known.next_batch
      || batch.first_response > known.next_response
      || batch.size > known.next_response - batch.first_response
      || batch.first_group > known.next_group
      || batch.groups > known.next_group - batch.first_group)
    return damaged(name(batch) + " has numbers that cannot be");
  if (!known.batches.empty()) {
    const auto& before = known.batches.back();
    if (batch.first_response < before.first_response + before.size)
      return damaged(name(batch) + " has responses of another");
  }
  if (!keys_.emplace(batch.spec.batch_key, batch.owner).second)
    return damaged(name(batch) + " has the key of another");
  if (!row.null(10))
    batch.started =
      batch_started{batch.id, row.text(10), row.number(11), unpacked_experts(row.number(19))};
  if (batch.started && !is_sound(batch.started->experts))
    return damaged(name(batch) + " has a model that cannot be");
  if (auto ok = load_ending(row, batch); !ok)
    return ok;
  found_.batches.push_back(std::move(batch));
  return {};
}

result<void> loader::load_ending(statement& row, batch_image& batch) {
  if (!row.null(15))
    batch.failure = error{static_cast<errc>(row.number(14)), row.text(15), {}};
  if (row.null(13))
    return {};
  auto event = wire::decode_event(row.bytes(13));
  auto* done = event ? std::get_if<wire::batch_done>(&event->body) : nullptr;
  if (done == nullptr)
    return damaged(name(batch) + " has no summary");
  batch.ended = batch_ended{batch.id, std::move(done->summary)};
  return {};
}

result<void> loader::load_contents(batch_image& batch) {
  auto query = db_->prepare("SELECT spec FROM prompts WHERE batch = ?");
  if (!query)
    return unreadable(query.error());
  query->start(batch.id.value);
  const auto row = query->step();
  if (!row)
    return unreadable(row.error());
  if (!*row)
    return damaged(name(batch) + " has no prompts");
  auto spec = wire::stored_batch(query->bytes(0));
  std::uint64_t size = 0;
  if (spec)
    for (const auto& group : spec->groups)
      size += group.group_size;
  if (!spec || size != batch.size || spec->groups.size() != batch.groups
      || hash_of(*spec) != batch.spec_hash || spec->batch_key != batch.spec.batch_key)
    return damaged(name(batch) + " has other prompts than it was submitted with");
  batch.spec = std::move(*spec);
  batch.responses.resize(batch.size);
  if (auto ok = load_finished(batch); !ok)
    return ok;
  return load_edges(batch);
}

result<void> loader::load_finished(batch_image& batch) {
  auto query =
    db_->prepare("SELECT sequence, ordinal, reason FROM finished WHERE batch = ? ORDER BY 1");
  if (!query)
    return unreadable(query.error());
  query->start(batch.id.value);
  std::uint64_t last = 0;
  auto ok = rows(*query, [&](statement& row) -> result<void> {
    const auto ordinal = row.number(1);
    const auto reason = row.number(2);
    if (row.number(0) != ++last || ordinal >= batch.size || batch.responses[ordinal].sequence != 0
        || reason < 1 || reason > 3)
      return damaged(name(batch) + ": result " + std::to_string(last) + " is missing");
    batch.responses[ordinal].sequence = last;
    batch.responses[ordinal].reason = static_cast<wire::finish_reason>(reason);
    return {};
  });
  if (!ok)
    return ok;
  if (last < std::min(batch.acknowledged, batch.size) || (batch.ended && last != batch.size))
    return damaged(name(batch) + ": only " + std::to_string(last) + " results are there");
  return {};
}

result<void> loader::load_edges(batch_image& batch) {
  auto query = db_->prepare("SELECT edge, weight_version, tokens, logprobs, kept_masses, sum,"
                            " experts FROM edges WHERE edge >= ? AND edge < ? ORDER BY edge");
  if (!query)
    return unreadable(query.error());
  query->start(edge_key(batch.first_response, 0), edge_key(batch.first_response + batch.size, 0));
  std::vector<std::uint32_t> prompts;
  if (batch.spec.routed_experts_from)
    for (const auto& group : batch.spec.groups)
      prompts.insert(prompts.end(), group.group_size,
                     static_cast<std::uint32_t>(group.prompt_token_ids.size()));
  return rows(*query, [&](statement& row) { return load_edge(row, batch, prompts); });
}

/// Bytes that ids of experts have which come with tokens [before, after).
std::size_t expert_bytes_of(const batch_image& batch, std::uint32_t prompt, std::size_t before,
                            std::size_t after) {
  const auto layout = batch.started ? batch.started->experts : expert_layout{};
  const auto range =
    routed_positions(*batch.spec.routed_experts_from, prompt, static_cast<std::uint32_t>(before),
                     static_cast<std::uint32_t>(after));
  return range.size() * layout.position_bytes();
}

result<void> loader::load_edge(statement& row, batch_image& batch,
                               const std::vector<std::uint32_t>& prompts) {
  const auto key = row.number(0);
  const auto version = row.number(1);
  const auto ordinal = (key >> position_bits) - batch.first_response;
  const auto position = key & ((1u << position_bits) - 1);
  const auto tokens = row.bytes(2);
  const auto logprobs = row.bytes(3);
  const auto masses = row.bytes(4);
  const auto experts = row.bytes(6);
  const auto where =
    name(batch) + ", response " + std::to_string(ordinal) + ", token " + std::to_string(position);
  if (ordinal >= batch.responses.size()) // a table whose rows are out of order says anything
    return damaged(name(batch) + " has a chunk of another");
  auto& response = batch.responses[ordinal];
  if (edge_check(key, version, tokens, logprobs, masses, experts) != row.number(5))
    return damaged(where + ": the bits are not those that were written");
  if (tokens.empty() || tokens.size() % sizeof(token_id) != 0 || logprobs.size() != tokens.size()
      || (!masses.empty() && masses.size() != tokens.size()) || position != response.tokens.size())
    return damaged(where + ": does not go on from token " + std::to_string(response.tokens.size()));
  const auto after = response.tokens.size() + tokens.size() / sizeof(token_id);
  const auto due =
    prompts.empty() ? 0 : expert_bytes_of(batch, prompts[ordinal], response.tokens.size(), after);
  if (experts.size() != due)
    return damaged(where + ": has " + std::to_string(experts.size())
                   + " bytes of ids of experts, not " + std::to_string(due));
  if (response.sequence != 0 && response.sequence <= batch.acknowledged)
    return damaged(where + ": is acknowledged and still there");
  if (response.versions.empty() || response.versions.back().version != version)
    response.versions.push_back({version, static_cast<std::uint32_t>(position)});
  append(response.tokens, tokens);
  append(response.logprobs, logprobs);
  append(response.kept_masses, masses);
  append(response.experts, experts);
  response.kept_masses.resize(response.tokens.size(), 1.0f);
  return {};
}

} // namespace

result<image> load(database& db) {
  if (auto ok = db.run("BEGIN"); !ok) // one state of all tables
    return tl::unexpected(refusal(db, ok.error()));
  auto found = loader{db}.load();
  if (auto ok = db.run("COMMIT"); found && !ok)
    return tl::unexpected(refusal(db, ok.error()));
  return found;
}

} // namespace rollcast::journal
