#include "cluster/journal/store.hpp"

#include "cluster/journal/schema.hpp"
#include "cluster/wire/batch_hash.hpp"
#include "cluster/wire/codec.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace rollcast::journal {

namespace {

template <class T>
blob bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span{values});
}

blob bytes_of(const std::string& text) {
  return std::as_bytes(std::span{text.data(), text.size()});
}

} // namespace

struct store::statements {
  statement begin;
  statement commit;
  statement counters;
  statement submit;
  statement prompts;
  statement start;
  statement edge;
  statement finish;
  statement failed;
  statement end;
  statement results;
  statement acknowledge;
  statement tokens;
  statement drop_edges;
  statement drop_prompts;
  statement drop_finished;
  statement forget;
  statement identity;
  statement epoch;
};

result<store> store::make(database& db, const image& known) {
  result<void> ok;
  const auto prepare = [&](const char* sql) -> statement {
    auto made = db.prepare(sql);
    if (made)
      return std::move(*made);
    ok = fail(made);
    return *db.prepare("SELECT 1");
  };
  // The members in their order.
  auto all = std::make_shared<statements>(statements{
    prepare("BEGIN IMMEDIATE"), prepare("COMMIT"),
    prepare("UPDATE meta SET next_batch = ?, next_group = ?, next_response = ?,"
            " epoch_promised = ?"),
    prepare("INSERT INTO batches (batch, batch_key, head, spec_high, spec_low, first_response,"
            " first_group, groups, size, submitted_ns, owner) VALUES (?,?,?,?,?,?,?,?,?,?,?)"),
    prepare("INSERT INTO prompts VALUES (?,?)"),
    prepare("UPDATE batches SET profile = ?, weight_version = ?, started_ns = ?, experts = ?"
            " WHERE batch = ?"),
    prepare("INSERT INTO edges (edge, weight_version, tokens, logprobs, kept_masses, sum, experts)"
            " VALUES (?,?,?,?,?,?,?)"),
    prepare("INSERT INTO finished VALUES (?,?,?,?)"),
    prepare("UPDATE batches SET failure_code = ?, failure = ? WHERE batch = ?"),
    prepare("UPDATE batches SET summary = ?, ended_ns = ? WHERE batch = ?"),
    prepare("SELECT ordinal FROM finished WHERE batch = ? AND sequence > ? AND sequence <= ?"),
    prepare("UPDATE batches SET acknowledged = ?,"
            " tokens_acknowledged = tokens_acknowledged + ? WHERE batch = ?"),
    prepare("SELECT coalesce(sum(length(tokens)), 0) / 4 FROM edges"
            " WHERE edge >= ? AND edge < ?"),
    prepare("DELETE FROM edges WHERE edge >= ? AND edge < ?"),
    prepare("DELETE FROM prompts WHERE batch = ?"), prepare("DELETE FROM finished WHERE batch = ?"),
    prepare("DELETE FROM batches WHERE batch = ?"),
    prepare("INSERT OR REPLACE INTO identity VALUES (1,?,?,?,?,?,?,?)"),
    prepare("INSERT OR REPLACE INTO epoch VALUES (1,?,?,?)")});
  if (!ok)
    return fail(ok);
  store made{db};
  made.sql_ = std::move(all);
  for (const auto& batch : known.batches) {
    auto& state = made.batches_[batch.id];
    state = {batch.first_response, batch.size, 0, batch.acknowledged};
    for (const auto& r : batch.responses)
      state.finished += r.sequence != 0 ? 1 : 0;
  }
  made.next_batch_ = known.next_batch;
  made.next_group_ = known.next_group;
  made.next_response_ = known.next_response;
  made.epoch_promised_ = known.epoch_promised;
  return made;
}

// -- what a record comes to -----------------------------------------------------------------------

entry store::settle(record what, std::uint64_t unix_ns) {
  entry e;
  e.what = std::move(what);
  e.unix_ns = unix_ns;
  std::visit(
    [&](const auto& x) {
      using kind = std::decay_t<decltype(x)>;
      if constexpr (requires { x.id; } && !std::is_same_v<kind, batch_submitted>) {
        const auto known = batches_.find(x.id);
        e.news = known != batches_.end();
        if (!e.news)
          return;
        e.first_response = known->second.first_response;
        e.size = known->second.size;
      }
      settle_kind(e, x);
    },
    e.what);
  e.next_batch = next_batch_;
  e.next_group = next_group_;
  e.next_response = next_response_;
  e.epoch_promised = epoch_promised_;
  return e;
}

void store::settle_kind(entry& e, const batch_submitted& x) {
  e.first_response = x.first_response;
  for (const auto& group : x.spec->groups)
    e.size += group.group_size;
  batches_[x.id] = {e.first_response, e.size, 0, 0};
  next_batch_ = std::max(next_batch_, x.id.value + 1);
  next_group_ = std::max(next_group_, x.first_group + x.spec->groups.size());
  next_response_ = std::max(next_response_, x.first_response + e.size);
  ROLLCAST_CHECK(next_response_ < response_ids_max);
}

void store::settle_kind(entry&, const batch_forgotten& x) {
  batches_.erase(x.id);
}

void store::settle_kind(entry& e, const response_finished& x) {
  e.sequence = ++batches_.at(x.id).finished;
}

void store::settle_kind(entry& e, const results_acknowledged& x) {
  auto& state = batches_.at(x.id);
  e.acknowledged = state.acknowledged;
  state.acknowledged = e.sequence = std::max(state.acknowledged, x.sequence);
}

void store::settle_kind(entry&, const epoch_promised& x) {
  epoch_promised_ = std::max(epoch_promised_, x.epoch);
}

// -- to the tables --------------------------------------------------------------------------------

result<void> store::commit(std::span<const entry> entries) {
  auto ok = sql_->begin.run();
  for (auto e = entries.begin(); ok && e != entries.end(); ++e)
    if (e->news)
      ok = std::visit([&](const auto& x) { return write(*e, x); }, e->what);
  if (ok)
    ok = sql_->commit.run();
  if (!ok) {
    // What contradicts the tables was never to be written, and trying again cannot help.
    ROLLCAST_CHECK(!database::contradicts(db_->last_code()));
    db_->roll_back();
  }
  return ok;
}

result<void> store::write_counters(const entry& e) {
  return sql_->counters.run(e.next_batch, e.next_group, e.next_response, e.epoch_promised);
}

result<void> store::write(const entry& e, const batch_submitted& x) {
  auto head = *x.spec;
  head.groups.clear();
  const auto head_bytes = wire::stored(head);
  const auto hash = hash_of(*x.spec);
  if (auto ok = sql_->submit.run(x.id.value, std::string_view{x.spec->batch_key},
                                 bytes_of(head_bytes), hash.high, hash.low, x.first_response,
                                 x.first_group, std::uint64_t{x.spec->groups.size()}, e.size,
                                 e.unix_ns, std::string_view{x.owner});
      !ok)
    return ok;
  const auto bytes = wire::stored(*x.spec);
  if (auto ok = sql_->prompts.run(x.id.value, bytes_of(bytes)); !ok)
    return ok;
  return write_counters(e);
}

result<void> store::write(const entry& e, const batch_started& x) {
  return sql_->start.run(std::string_view{x.numerics_profile}, x.weight_version, e.unix_ns,
                         packed(x.experts), x.id.value);
}

result<void> store::write(const entry& e, const chunk_edge& x) {
  ROLLCAST_CHECK(x.ordinal < e.size && x.position < 1u << position_bits);
  ROLLCAST_CHECK(x.logprobs.size() == x.tokens.size());
  ROLLCAST_CHECK(x.kept_masses.empty() || x.kept_masses.size() == x.tokens.size());
  if (x.tokens.empty())
    return {};
  const auto key = edge_key(e.first_response + x.ordinal, x.position);
  const auto tokens = bytes_of(x.tokens);
  const auto logprobs = bytes_of(x.logprobs);
  const auto masses = bytes_of(x.kept_masses);
  const auto experts = bytes_of(x.experts);
  return sql_->edge.run(key, x.weight_version, tokens, logprobs,
                        masses.empty() ? std::nullopt : std::optional{masses},
                        edge_check(key, x.weight_version, tokens, logprobs, masses, experts),
                        experts.empty() ? std::nullopt : std::optional{experts});
}

result<void> store::write(const entry& e, const response_finished& x) {
  ROLLCAST_CHECK(x.ordinal < e.size && e.sequence <= e.size);
  return sql_->finish.run(x.id.value, e.sequence, x.ordinal, static_cast<std::uint64_t>(x.reason));
}

result<void> store::write(const entry&, const batch_failed& x) {
  return sql_->failed.run(static_cast<std::uint64_t>(x.why.code), std::string_view{x.why.detail},
                          x.id.value);
}

result<void> store::write(const entry& e, const batch_ended& x) {
  const auto summary = wire::encode(0, wire::event{wire::batch_done{{}, 0, x.summary}});
  return sql_->end.run(bytes_of(summary), e.unix_ns, x.id.value);
}

result<void> store::write(const entry& e, const results_acknowledged& x) {
  if (e.sequence == e.acknowledged)
    return {};
  std::vector<std::uint64_t> ordinals;
  sql_->results.start(x.id.value, e.acknowledged, e.sequence);
  auto row = sql_->results.step();
  for (; row && *row; row = sql_->results.step())
    ordinals.push_back(sql_->results.number(0));
  sql_->results.reset();
  if (!row)
    return fail(row);
  std::uint64_t tokens = 0;
  for (const auto ordinal : ordinals) {
    const auto dropped = drop_response(e.first_response + ordinal);
    if (!dropped)
      return fail(dropped);
    tokens += *dropped;
  }
  if (auto ok = sql_->acknowledge.run(e.sequence, tokens, x.id.value); !ok)
    return ok;
  return e.sequence > e.size ? drop_contents(e, x.id) : result<void>{};
}

/// @returns how many tokens it had.
result<std::uint64_t> store::drop_response(std::uint64_t response) {
  const auto first = edge_key(response, 0);
  const auto end = edge_key(response + 1, 0);
  sql_->tokens.start(first, end);
  const auto row = sql_->tokens.step();
  const auto tokens = row && *row ? sql_->tokens.number(0) : 0;
  sql_->tokens.reset();
  if (!row)
    return fail(row);
  if (auto ok = sql_->drop_edges.run(first, end); !ok)
    return fail(ok);
  return tokens;
}

/// What nobody needs after a batch's end is acknowledged.
result<void> store::drop_contents(const entry& e, batch_id id) {
  const auto first = edge_key(e.first_response, 0);
  if (auto ok = sql_->drop_edges.run(first, edge_key(e.first_response + e.size, 0)); !ok)
    return ok;
  if (auto ok = sql_->drop_finished.run(id.value); !ok)
    return ok;
  return sql_->drop_prompts.run(id.value);
}

result<void> store::write(const entry& e, const batch_forgotten& x) {
  if (auto ok = drop_contents(e, x.id); !ok)
    return ok;
  return sql_->forget.run(x.id.value);
}

result<void> store::write(const entry&, const cluster_identity& x) {
  return sql_->identity.run(std::string_view{x.model}, std::string_view{x.numerics},
                            x.numerics_hash.high, x.numerics_hash.low, std::uint64_t{x.vocabulary},
                            std::uint64_t{x.context_max}, bytes_of(x.eos_token_ids));
}

result<void> store::write(const entry&, const epoch_decided& x) {
  return sql_->epoch.run(x.epoch, x.weights.high, x.weights.low);
}

result<void> store::write(const entry& e, const epoch_promised&) {
  return write_counters(e);
}

} // namespace rollcast::journal
