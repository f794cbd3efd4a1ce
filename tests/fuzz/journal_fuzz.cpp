// Goal: no journal file crashes a scheduler that starts on it, and one that opens is whole: what it
// comes to is true to itself, stays the same when it is opened again, and becomes a book whose
// batches all end and are collected.
// Method: a real journal is written once. The input changes rows of its tables (with the check sums
// of edges and the hashes of prompts put right, if it says so), then bytes of the file; random
// bytes alone would be no database.

#include "actors/bytes.hpp"
#include "cluster/batch/batch_book.hpp"
#include "cluster/journal/inspect.hpp"
#include "cluster/journal/schema.hpp"
#include "cluster/wire/batch_hash.hpp"
#include "cluster/wire/codec.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/unit/journal/histories.hpp"

#include <spdlog/spdlog.h>

#include <array>
#include <fstream>
#include <iterator>

namespace rollcast::fuzz {
namespace {

namespace jn = journal;

enum class kind : std::uint8_t { number, text, bytes };

struct column {
  const char* table;
  const char* name;
  kind type;
};

constexpr std::array columns{
  column{"meta", "generation", kind::number},
  column{"meta", "next_batch", kind::number},
  column{"meta", "next_group", kind::number},
  column{"meta", "next_response", kind::number},
  column{"meta", "epoch_promised", kind::number},
  column{"identity", "model", kind::text},
  column{"identity", "vocabulary", kind::number},
  column{"identity", "eos_token_ids", kind::bytes},
  column{"epoch", "epoch", kind::number},
  column{"batches", "batch", kind::number},
  column{"batches", "batch_key", kind::text},
  column{"batches", "head", kind::bytes},
  column{"batches", "spec_low", kind::number},
  column{"batches", "first_response", kind::number},
  column{"batches", "first_group", kind::number},
  column{"batches", "groups", kind::number},
  column{"batches", "size", kind::number},
  column{"batches", "profile", kind::text},
  column{"batches", "weight_version", kind::number},
  column{"batches", "summary", kind::bytes},
  column{"batches", "failure_code", kind::number},
  column{"batches", "failure", kind::text},
  column{"batches", "acknowledged", kind::number},
  column{"batches", "owner", kind::text},
  column{"prompts", "batch", kind::number},
  column{"prompts", "spec", kind::bytes},
  column{"edges", "edge", kind::number},
  column{"edges", "weight_version", kind::number},
  column{"edges", "tokens", kind::bytes},
  column{"edges", "logprobs", kind::bytes},
  column{"edges", "kept_masses", kind::bytes},
  column{"edges", "sum", kind::number},
  column{"finished", "batch", kind::number},
  column{"finished", "sequence", kind::number},
  column{"finished", "ordinal", kind::number},
  column{"finished", "reason", kind::number},
  column{"batches", "spec_high", kind::number},
  column{"batches", "submitted_ns", kind::number},
  column{"batches", "started_ns", kind::number},
  column{"batches", "ended_ns", kind::number},
  column{"batches", "tokens_acknowledged", kind::number},
  column{"edges", "experts", kind::bytes},
  column{"batches", "experts", kind::number},
};

std::string path() {
  return (scratch() / "journal.db").string();
}

std::string read_all() {
  std::ifstream in{path(), std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

void remove_files() {
  std::error_code ignored;
  for (const auto* end : {"", "-wal", "-shm", ".lock"})
    std::filesystem::remove(path() + end, ignored);
}

/// What a scheduler has written, as a file. The same in every process, but for times.
const std::string& base() {
  static const auto made = [] {
    spdlog::set_level(spdlog::level::off);
    remove_files();
    auto opened = jn::journal::open({.path = path()});
    require(opened.has_value(), "a new journal opens");
    jn::history past{5};
    for (int i = 0; i < 60; ++i)
      opened->keeper->write(past.next());
    require(jn::settled(*opened->keeper), "a journal on memory is written");
    opened->keeper.reset();
    return read_all();
  }();
  return made;
}

/// Puts the check sum of every edge right, as only a program could that meant to deceive.
void mend_sums(jn::database& db) {
  auto rows =
    db.prepare("SELECT edge, weight_version, tokens, logprobs, kept_masses, experts FROM edges");
  auto update = db.prepare("UPDATE edges SET sum = ? WHERE edge = ?");
  if (!rows || !update)
    return;
  rows->start();
  for (auto row = rows->step(); row && *row; row = rows->step())
    (void)update->run(jn::edge_check(rows->number(0), rows->number(1), rows->bytes(2),
                                     rows->bytes(3), rows->bytes(4), rows->bytes(5)),
                      rows->number(0));
}

/// Puts the hash of every batch right by the prompts that are there now.
void mend_hashes(jn::database& db) {
  auto rows = db.prepare("SELECT batch, spec FROM prompts");
  auto update = db.prepare("UPDATE batches SET spec_high = ?, spec_low = ? WHERE batch = ?");
  if (!rows || !update)
    return;
  rows->start();
  for (auto row = rows->step(); row && *row; row = rows->step())
    if (const auto spec = wire::stored_batch(rows->bytes(1))) {
      const auto hash = wire::hash_of(*spec);
      (void)update->run(hash.high, hash.low, rows->number(0));
    }
}

/// Changes bytes of a value, so that it stays a message.
void change_blob(jn::database& db, const column& what, const std::string& where,
                 std::uint64_t count, input_reader& in) {
  auto rows = db.prepare(std::string{"SELECT "} + what.name + " FROM " + what.table + where);
  auto update =
    db.prepare(std::string{"UPDATE "} + what.table + " SET " + what.name + " = ?" + where);
  if (!rows || !update)
    return;
  rows->start();
  const auto row = rows->step();
  if (!row || !*row)
    return;
  const auto blob = rows->bytes(0);
  std::string bytes{reinterpret_cast<const char*>(blob.data()), blob.size()};
  for (; count > 0 && !bytes.empty(); --count)
    bytes[in.number(2) % bytes.size()] = static_cast<char>(in.number(1));
  rows->reset();
  (void)update->run(jn::blob{bytes_of(bytes)});
}

/// One row of a table, by its place. Not every table has row ids.
std::string row_of(const std::string& table, std::uint64_t row) {
  const std::string key = table == "finished" ? "(batch, sequence)" : "rowid";
  const std::string names = table == "finished" ? "batch, sequence" : "rowid";
  return " WHERE " + key + " = (SELECT " + names + " FROM " + table + " LIMIT 1 OFFSET "
         + std::to_string(row) + ")";
}

void change_row(jn::database& db, input_reader& in) {
  const auto& what = columns[in.number(1) % columns.size()];
  const std::string table = what.table;
  const auto row = in.number(1) % 8;
  const auto how = in.number(1);
  const auto where = row_of(table, row);
  if (how == 0xff) {
    (void)db.run("DELETE FROM " + table + where);
    return;
  }
  if (what.type == kind::bytes && (how & 0x80) != 0)
    return change_blob(db, what, where, 1 + how % 4, in);
  auto update = db.prepare("UPDATE " + table + " SET " + what.name + " = ?" + where);
  if (!update)
    return;
  if (what.type == kind::number)
    (void)update->run(std::uint64_t{in.number(how % 9)});
  else if (what.type == kind::text)
    (void)update->run(in.take(how % 64));
  else
    (void)update->run(jn::blob{bytes_of(in.take(how))});
}

void change_rows(input_reader& in) {
  const auto changes = in.number(1);
  if (changes == 0)
    return;
  auto db = jn::database::open(path(), jn::access::write);
  require(db.has_value(), "the base is a database");
  for (auto left = changes % 16; left > 0; --left)
    change_row(**db, in);
  if (changes & 0x80)
    mend_sums(**db);
  if (changes & 0x40)
    mend_hashes(**db);
}

void change_bytes(input_reader& in) {
  if (in.empty())
    return;
  auto file = read_all();
  while (!in.empty() && !file.empty()) {
    const auto offset = in.number(3) % file.size();
    const auto bytes = in.take(in.number(1) % 16);
    if (bytes.empty())
      file.resize(offset);
    else
      file.replace(offset, std::min(bytes.size(), file.size() - offset),
                   bytes.substr(0, file.size() - offset));
  }
  write_scratch("journal.db", file);
}

void check_batch(const jn::batch_image& batch) {
  require(batch.acknowledged <= batch.size + 1, "no more is acknowledged than there is");
  const bool collected = batch.acknowledged > batch.size;
  require(batch.responses.size() == (collected ? 0 : batch.size), "every response is there");
  for (const auto& r : batch.responses) {
    require(r.logprobs.size() == r.tokens.size() && r.kept_masses.size() == r.tokens.size(),
            "a token has its figures");
    require(r.sequence <= batch.size, "results are numbered within the batch");
    std::uint32_t last = 0;
    for (const auto& span : r.versions) {
      require(span.start >= last && span.start < r.tokens.size(), "spans are within the tokens");
      last = span.start;
    }
  }
}

void check_image(const jn::image& found) {
  std::uint64_t before = 0;
  for (const auto& batch : found.batches) {
    require(batch.id.value >= before && batch.id.value < found.next_batch, "ids ascend");
    require(batch.first_response + batch.size <= found.next_response, "numbers are given once");
    before = batch.id.value + 1;
    check_batch(batch);
  }
}

std::string text_of(const batch_book& book) {
  std::string text;
  const auto say = [&text](auto number) { text += std::to_string(number) + " "; };
  for (const auto& [id, b] : book.batches()) {
    text += "\n" + b.spec.batch_key + " of " + b.owner + " ";
    for (const auto number :
         {id.value, b.first_response, b.size, b.finished_count, b.live_groups, b.acknowledged,
          b.sent, b.sent_max, b.tokens_held, b.prompt_tokens, b.generated_tokens,
          std::uint64_t{static_cast<std::uint8_t>(b.phase)}})
      say(number);
    for (const auto& r : b.responses) {
      say(r.sequence);
      say(r.tokens.size());
      say(r.seed);
    }
  }
  return text;
}

model_ends ends_of(const jn::image& found) {
  if (!found.identity || !found.weights)
    return {};
  return {from_bytes<token_id>(found.identity->eos_token_ids), found.identity->context_max};
}

/// Ends every batch, gives all results to somebody and has them acknowledged.
void collect_all(batch_book& book) {
  std::vector<batch_id> all;
  for (const auto& [id, batch] : book.batches())
    all.push_back(id);
  for (const auto id : all) {
    auto& batch = book.batches().at(id);
    if (batch.phase != batch_phase::ended)
      (void)book.cancel(batch, 2'000);
    require(batch.phase == batch_phase::ended && batch.live_groups == 0, "a batch ends");
    bool there = book.attach(batch, "peer", batch.acknowledged);
    while (there && !batch.acknowledged_fully()) {
      const auto events = book.deliveries(batch);
      require(!events.empty(), "what is not acknowledged is delivered");
      for (const auto& event : events)
        require(wire::encode(0, event).size() > 0, "every event can be sent");
      there = book.acknowledge(batch, batch.sent);
    }
    require(!there || batch.tokens_held == 0, "nothing is held of what is acknowledged");
  }
}

void check_book(const jn::image& found, const jn::image& again) {
  constexpr batch_book::moment now{1'000'000, 2'000'000};
  batch_book book{{}};
  book.restore(found, ends_of(found), now);
  batch_book other{{}};
  other.restore(again, ends_of(again), now);
  require(text_of(book) == text_of(other), "a journal comes to one book");
  collect_all(book);
}

void check_open() {
  const auto before = jn::inspect(path());
  if (!before)
    check_refusal(before.error());
  auto opened = jn::journal::open({.path = path()});
  if (!opened)
    return check_refusal(opened.error());
  check_image(opened->found);
  opened->keeper.reset();
  auto again = jn::journal::open({.path = path()});
  require(again.has_value(), "what opened opens again");
  require(jn::text_of(again->found) == jn::text_of(opened->found), "opening changes nothing");
  require(again->found.generation == opened->found.generation + 1, "generations are counted");
  check_book(opened->found, again->found);
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto& base = fuzz::base();
  fuzz::remove_files();
  fuzz::write_scratch("journal.db", base);
  fuzz::input_reader in{fuzz::text_of(data, size)};
  fuzz::change_rows(in);
  fuzz::change_bytes(in);
  fuzz::check_open();
  return 0;
}
