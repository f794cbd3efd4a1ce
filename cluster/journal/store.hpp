#pragma once

#include "cluster/journal/records.hpp"
#include "cluster/journal/sqlite.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>

namespace rollcast::journal {

/// Reads everything. The database's own numbers are checked: what would not make a whole image is
/// refused with `bad_config`, and so are damaged edges. @pre the schema is ours
result<image> load(database& db);

/// A record and what it comes to on disk, settled once however often it is tried.
struct entry {
  record what;
  std::uint64_t unix_ns = 0;
  bool news = true;                 ///< False: about a batch that is not known (any more).
  std::uint64_t first_response = 0; ///< Of its batch, and how many it has.
  std::uint64_t size = 0;
  std::uint64_t sequence = 0;     ///< Of the result that finished, or acknowledged up to here,
  std::uint64_t acknowledged = 0; ///< where it was up to here before.
  std::uint64_t next_batch = 0;   ///< As in `image`, after this record, so are these
  std::uint64_t next_group = 0;
  std::uint64_t next_response = 0;
  std::uint64_t epoch_promised = 0;
};

/// Writes records to the tables. One thread.
class store {
public:
  /// Prepares what is needed to write what comes after `known`. `db` must outlive it.
  static result<store> make(database& db, const image& known);

  /// Settles the next record. In the order of `commit`.
  entry settle(record what, std::uint64_t unix_ns);
  /// Writes all of them, or none. Fails with `io_failed`.
  result<void> commit(std::span<const entry> entries);

private:
  explicit store(database& db) noexcept : db_(&db) {}
  struct batch_state {
    std::uint64_t first_response = 0;
    std::uint64_t size = 0;
    std::uint64_t finished = 0;
    std::uint64_t acknowledged = 0;
  };
  struct statements;

  void settle_kind(entry& e, const batch_submitted& x);
  void settle_kind(entry& e, const batch_forgotten& x);
  void settle_kind(entry& e, const response_finished& x);
  void settle_kind(entry& e, const results_acknowledged& x);
  void settle_kind(entry& e, const epoch_promised& x);
  template <class T>
  void settle_kind(entry&, const T&) {}

  result<void> write(const entry& e, const batch_submitted& x);
  result<void> write(const entry& e, const batch_started& x);
  result<void> write(const entry& e, const chunk_edge& x);
  result<void> write(const entry& e, const response_finished& x);
  result<void> write(const entry& e, const batch_failed& x);
  result<void> write(const entry& e, const batch_ended& x);
  result<void> write(const entry& e, const results_acknowledged& x);
  result<void> write(const entry& e, const batch_forgotten& x);
  result<void> write(const entry& e, const cluster_identity& x);
  result<void> write(const entry& e, const epoch_decided& x);
  result<void> write(const entry& e, const epoch_promised& x);
  result<void> write_counters(const entry& e);
  result<std::uint64_t> drop_response(std::uint64_t response);
  result<void> drop_contents(const entry& e, batch_id id);

  database* db_;
  std::shared_ptr<statements> sql_;
  std::unordered_map<batch_id, batch_state> batches_;
  std::uint64_t next_batch_ = 1;
  std::uint64_t next_group_ = 1;
  std::uint64_t next_response_ = 1;
  std::uint64_t epoch_promised_ = 0;
};

} // namespace rollcast::journal
