#include "cluster/journal/inspect.hpp"

#include "cluster/journal/lock_file.hpp"
#include "cluster/journal/schema.hpp"
#include "cluster/journal/sqlite.hpp"

#include <algorithm>
#include <filesystem>
#include <utility>

namespace rollcast::journal {

namespace {

std::uint64_t bytes_of_file(const std::string& path) {
  std::error_code missing;
  const auto bytes = std::filesystem::file_size(path, missing);
  return missing ? 0 : bytes;
}

result<std::string> existing(const std::string& path) {
  std::error_code missing;
  const auto resolved = std::filesystem::canonical(path, missing);
  if (missing || !std::filesystem::is_regular_file(resolved, missing))
    return fail(errc::bad_config, "journal " + path + ": there is no such file");
  return resolved.string();
}

/// Opens for reading. Without a writer and in a directory where nothing can be made, the file must
/// be taken as it is.
result<std::unique_ptr<database>> open_to_read(const std::string& path) {
  auto db = database::open(path, access::read);
  if (db && (*db)->number("PRAGMA schema_version"))
    return db;
  if (db && database::damaged((*db)->last_code()))
    return db; // the checks have the words for it
  const bool alone = lock_file::holder(path) == 0 && bytes_of_file(path + "-wal") == 0;
  auto still = alone ? database::open(path, access::immutable) : std::move(db);
  if (!still)
    return fail(errc::bad_config, still.error().detail);
  return still;
}

constexpr const char* batches_sql = R"(
SELECT b.batch, b.batch_key,
  CASE WHEN b.acknowledged > b.size THEN 'collected'
       WHEN b.failure IS NOT NULL THEN 'failed'
       WHEN b.summary IS NOT NULL THEN 'ended'
       WHEN b.profile IS NOT NULL THEN 'running' ELSE 'queued' END,
  b.size,
  CASE WHEN b.acknowledged > b.size THEN b.size
       ELSE (SELECT count(*) FROM finished f WHERE f.batch = b.batch) END,
  (SELECT coalesce(sum(length(tokens)), 0) / 4 FROM edges e
   WHERE e.edge >= b.first_response << ?1 AND e.edge < (b.first_response + b.size) << ?1),
  b.acknowledged, b.submitted_ns
FROM batches b ORDER BY b.batch)";

result<void> read_batches(const database& db, summary& out) {
  auto rows = db.prepare(batches_sql);
  if (!rows)
    return fail(rows);
  rows->start(std::uint64_t{position_bits});
  for (;;) {
    const auto row = rows->step();
    if (!row || !*row)
      return row ? result<void>{} : fail(row);
    out.batches.push_back({{rows->number(0)},
                           rows->text(1),
                           rows->text(2),
                           rows->number(3),
                           rows->number(4),
                           rows->number(5),
                           rows->number(6),
                           rows->number(7)});
  }
}

result<void> read_cluster(const database& db, summary& out) {
  auto meta = db.prepare("SELECT generation, epoch_promised FROM meta");
  auto identity = db.prepare("SELECT model, numerics, numerics_high, numerics_low, vocabulary,"
                             " context_max, eos_token_ids FROM identity WHERE model <> ''");
  auto epoch = db.prepare("SELECT epoch, weights_high, weights_low FROM epoch");
  for (auto* query : {&meta, &identity, &epoch}) {
    if (!*query)
      return fail(*query);
    const auto row = (*query)->step();
    if (!row)
      return fail(row);
    if (!*row)
      continue;
    const auto& x = **query;
    if (query == &meta) {
      out.generation = x.number(0);
      out.epoch_promised = x.number(1);
    } else if (query == &identity) {
      out.identity = {x.text(0),
                      x.text(1),
                      {x.number(2), x.number(3)},
                      static_cast<std::uint32_t>(x.number(4)),
                      static_cast<std::uint32_t>(x.number(5)),
                      x.text(6)};
    } else {
      out.weights = {x.number(0), {x.number(1), x.number(2)}};
    }
  }
  return {};
}

/// A database that is damaged is not written anew: a tool for that may still save some of it.
result<void> check_pages(database& db) {
  auto check = db.prepare("PRAGMA quick_check(1)");
  const auto row = check ? check->step() : fail(check);
  if (!row)
    return tl::unexpected(refusal(db, row.error()));
  auto said = *row ? check->text(0) : std::string{};
  std::replace(said.begin(), said.end(), '\n', ' ');
  if (said != "ok")
    return fail(errc::bad_config, "journal " + db.path() + ": it is damaged (" + said
                                    + "); restore a copy, or name another file");
  return {};
}

/// What stands in the tables, all of one moment.
result<void> read_tables(database& db, summary& out) {
  if (auto ok = db.run("BEGIN"); !ok)
    return ok;
  const auto pages = db.number("PRAGMA freelist_count");
  const auto page_bytes = pages ? db.number("PRAGMA page_size") : pages;
  const auto version = page_bytes ? db.number("PRAGMA user_version") : page_bytes;
  if (!version)
    return fail(version);
  out.schema = *version;
  out.free_bytes = *pages * *page_bytes;
  if (auto ok = read_cluster(db, out); !ok)
    return ok;
  if (auto ok = read_batches(db, out); !ok)
    return ok;
  return db.run("COMMIT");
}

} // namespace

result<summary> inspect(const std::string& path) {
  const auto file = existing(path);
  if (!file)
    return fail(file);
  summary out;
  out.path = *file;
  out.writer = lock_file::holder(*file);
  out.file_bytes = bytes_of_file(*file);
  out.log_bytes = bytes_of_file(*file + "-wal");
  const auto db = open_to_read(*file);
  if (!db)
    return fail(db);
  if (auto ok = check_schema(**db, false); !ok)
    return fail(ok);
  if (auto ok = read_tables(**db, out); !ok)
    return tl::unexpected(refusal(**db, ok.error()));
  return out;
}

result<compaction> compact(const std::string& path) {
  const auto file = existing(path);
  if (!file)
    return fail(file);
  const auto lock = lock_file::take(*file);
  if (!lock)
    return fail(lock);
  compaction out;
  out.bytes_before = bytes_of_file(*file) + bytes_of_file(*file + "-wal");
  {
    const auto db = database::open(*file, access::write);
    if (!db)
      return fail(errc::bad_config, db.error().detail);
    if (auto ok = check_schema(**db, false); !ok)
      return fail(ok);
    if (auto ok = migrate(**db); !ok)
      return fail(ok);
    if (auto ok = check_pages(**db); !ok)
      return fail(ok);
    // The log goes to the database, then the database is written anew, through the log too.
    auto ok = (*db)->checkpoint(true);
    if (ok)
      ok = (*db)->run("VACUUM");
    if (ok)
      ok = (*db)->checkpoint(true);
    if (!ok)
      return tl::unexpected(refusal(**db, ok.error()));
  }
  out.bytes_after = bytes_of_file(*file) + bytes_of_file(*file + "-wal");
  return out;
}

} // namespace rollcast::journal
