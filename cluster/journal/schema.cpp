#include "cluster/journal/schema.hpp"

#include "cluster/wire/validate.hpp"
#include "engine/base/hash.hpp"

#include <array>
#include <bit>
#include <string>

namespace rollcast::journal {

static_assert(std::endian::native == std::endian::little, "blobs are little-endian");
static_assert(wire::limits.new_tokens <= 1u << position_bits);

namespace {

/// Step i makes schema i + 1 out of schema i. A step that was released never changes.
constexpr std::array<const char*, schema_version> steps{
  R"(
CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  generation INTEGER NOT NULL,
  next_batch INTEGER NOT NULL,
  next_group INTEGER NOT NULL,
  next_response INTEGER NOT NULL,
  epoch_promised INTEGER NOT NULL
) STRICT;
INSERT INTO meta VALUES (1, 0, 1, 1, 1, 0);
CREATE TABLE identity (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  model TEXT NOT NULL,
  numerics TEXT NOT NULL,
  numerics_high INTEGER NOT NULL,
  numerics_low INTEGER NOT NULL,
  vocabulary INTEGER NOT NULL,
  context_max INTEGER NOT NULL,
  eos_token_ids BLOB NOT NULL
) STRICT;
CREATE TABLE epoch (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  epoch INTEGER NOT NULL,
  weights_high INTEGER NOT NULL,
  weights_low INTEGER NOT NULL
) STRICT;
CREATE TABLE batches (
  batch INTEGER PRIMARY KEY,
  batch_key TEXT NOT NULL,
  head BLOB NOT NULL,
  spec_high INTEGER NOT NULL,
  spec_low INTEGER NOT NULL,
  first_response INTEGER NOT NULL,
  first_group INTEGER NOT NULL,
  groups INTEGER NOT NULL,
  size INTEGER NOT NULL,
  submitted_ns INTEGER NOT NULL,
  started_ns INTEGER NOT NULL DEFAULT 0,
  profile TEXT,
  weight_version INTEGER,
  ended_ns INTEGER NOT NULL DEFAULT 0,
  summary BLOB,
  failure_code INTEGER,
  failure TEXT,
  acknowledged INTEGER NOT NULL DEFAULT 0,
  tokens_acknowledged INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE prompts (
  batch INTEGER PRIMARY KEY,
  spec BLOB NOT NULL
) STRICT;
CREATE TABLE edges (
  edge INTEGER PRIMARY KEY,
  weight_version INTEGER NOT NULL,
  tokens BLOB NOT NULL,
  logprobs BLOB NOT NULL,
  kept_masses BLOB,
  sum INTEGER NOT NULL
) STRICT;
CREATE TABLE finished (
  batch INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  ordinal INTEGER NOT NULL,
  reason INTEGER NOT NULL,
  PRIMARY KEY (batch, sequence)
) STRICT, WITHOUT ROWID;
)",
  R"(
ALTER TABLE batches ADD COLUMN owner TEXT NOT NULL DEFAULT '';
)",
  R"(
ALTER TABLE batches ADD COLUMN experts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE edges ADD COLUMN experts BLOB;
)"};

} // namespace

error refusal(const database& db, const error& why) {
  const bool damaged = database::damaged(db.last_code());
  return {database::may_pass(db.last_code()) ? errc::io_failed : errc::bad_config,
          why.detail
            + (damaged ? "; it is damaged or no journal: restore a copy, or name another file and "
                         "submit again"
                       : "; look at the disk and the file's permissions, then start again"),
          why.where};
}

result<void> check_schema(database& db, bool may_be_new) {
  const auto id = db.number("PRAGMA application_id");
  const auto version = id ? db.number("PRAGMA user_version") : id;
  const auto tables = version ? db.number("SELECT count(*) FROM sqlite_schema") : version;
  if (!tables)
    return tl::unexpected(refusal(db, tables.error()));
  if (*id == 0 && *version == 0 && *tables == 0) {
    if (may_be_new)
      return {};
    return fail(errc::bad_config, "journal " + db.path() + ": the database is empty");
  }
  if (*id != application_id)
    return fail(errc::bad_config, "journal " + db.path()
                                    + ": a SQLite database of another program "
                                      "(application_id "
                                    + std::to_string(*id) + ", ours is "
                                    + std::to_string(application_id) + "); name another file");
  if (*version > schema_version || *version == 0)
    return fail(errc::bad_config, "journal " + db.path() + ": schema " + std::to_string(*version)
                                    + ", this build knows 1 to " + std::to_string(schema_version)
                                    + "; use the release that wrote it, or a newer one");
  return {};
}

namespace {

/// A write-ahead log that is synced with every commit. Its checkpoints are ours (`database`).
result<void> use_log(database& db) {
  if (auto ok = db.run("PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864;"
                       "PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;");
      !ok)
    return tl::unexpected(refusal(db, ok.error()));
  auto query = db.prepare("PRAGMA journal_mode = WAL");
  const auto row = query ? query->step() : fail(query);
  if (!row)
    return tl::unexpected(refusal(db, row.error()));
  if (!*row || query->text(0) != "wal") // a file system without shared memory, for one
    return fail(errc::bad_config, "journal " + db.path()
                                    + ": its file system takes no write-ahead "
                                      "log; name a file on a local disk");
  return {};
}

} // namespace

result<void> migrate(database& db) {
  auto version = db.number("PRAGMA user_version");
  if (!version)
    return tl::unexpected(refusal(db, version.error()));
  // Before the first table, or it has no effect. The log's mode stays in the file.
  if (*version == 0)
    if (auto ok = db.run("PRAGMA auto_vacuum = INCREMENTAL"); !ok)
      return tl::unexpected(refusal(db, ok.error()));
  if (auto ok = use_log(db); !ok)
    return ok;
  for (; *version < schema_version; ++*version) {
    const auto step = "BEGIN IMMEDIATE;" + std::string{steps[*version]}
                      + "PRAGMA application_id = " + std::to_string(application_id)
                      + "; PRAGMA user_version = " + std::to_string(*version + 1) + "; COMMIT";
    if (auto ok = db.run(step); !ok) {
      const auto why = refusal(db, ok.error());
      db.roll_back();
      return tl::unexpected(why);
    }
  }
  return {};
}

std::uint64_t packed(const expert_layout& experts) noexcept {
  return std::uint64_t{experts.layers} << 32 | std::uint64_t{experts.per_token} << 8
         | experts.id_bytes;
}

expert_layout unpacked_experts(std::uint64_t number) noexcept {
  return {static_cast<std::uint32_t>(number >> 32),
          static_cast<std::uint32_t>(number >> 8) & 0xffffff,
          static_cast<std::uint32_t>(number & 0xff)};
}

std::uint64_t edge_check(std::uint64_t key, std::uint64_t version, blob tokens, blob logprobs,
                         blob kept_masses, blob experts) noexcept {
  const std::array<std::uint64_t, 2> head{key, version};
  auto sum = hash_bytes(std::as_bytes(std::span{head}));
  for (const auto part : {tokens, logprobs, kept_masses})
    sum = hash_bytes(part, sum.low);
  if (!experts.empty()) // sums of edges without any are as they were before there was this column
    sum = hash_bytes(experts, sum.low);
  return sum.low;
}

} // namespace rollcast::journal
