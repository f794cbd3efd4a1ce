#include "cluster/journal/sqlite.hpp"

#include <sqlite3.h>

#include <bit>

namespace rollcast::journal {

// -- statements -----------------------------------------------------------------------------------

void statement::finalize::operator()(sqlite3_stmt* s) const noexcept {
  sqlite3_finalize(s);
}

void statement::note(int code) noexcept {
  if (failed_ == SQLITE_OK)
    failed_ = code;
}

void statement::bind(int at, std::uint64_t value) noexcept {
  note(sqlite3_bind_int64(stmt_.get(), at, std::bit_cast<std::int64_t>(value)));
}

void statement::bind(int at, std::string_view value) noexcept {
  // A null pointer would bind NULL.
  note(sqlite3_bind_text64(stmt_.get(), at, value.empty() ? "" : value.data(), value.size(),
                           SQLITE_STATIC, SQLITE_UTF8));
}

void statement::bind(int at, blob value) noexcept {
  note(value.empty()
         ? sqlite3_bind_zeroblob(stmt_.get(), at, 0)
         : sqlite3_bind_blob64(stmt_.get(), at, value.data(), value.size(), SQLITE_STATIC));
}

void statement::bind(int at, std::nullopt_t) noexcept {
  note(sqlite3_bind_null(stmt_.get(), at));
}

void statement::bind(int at, const std::optional<std::string_view>& value) noexcept {
  value ? bind(at, *value) : bind(at, std::nullopt);
}

void statement::bind(int at, const std::optional<blob>& value) noexcept {
  value ? bind(at, *value) : bind(at, std::nullopt);
}

result<bool> statement::step() {
  if (failed_ != SQLITE_OK)
    return tl::unexpected(owner_->failure(failed_));
  const int code = sqlite3_step(stmt_.get());
  if (code == SQLITE_ROW)
    return true;
  if (code == SQLITE_DONE)
    return false;
  return tl::unexpected(owner_->failure(code));
}

void statement::reset() noexcept {
  sqlite3_reset(stmt_.get());
  failed_ = SQLITE_OK;
}

std::uint64_t statement::number(int column) const noexcept {
  return std::bit_cast<std::uint64_t>(
    static_cast<std::int64_t>(sqlite3_column_int64(stmt_.get(), column)));
}

blob statement::bytes(int column) const noexcept {
  // The order matters: the pointer may make the text or blob that the size is of.
  const void* data = sqlite3_column_blob(stmt_.get(), column);
  return {static_cast<const std::byte*>(data),
          static_cast<std::size_t>(sqlite3_column_bytes(stmt_.get(), column))};
}

std::string statement::text(int column) const {
  const auto all = bytes(column);
  return {reinterpret_cast<const char*>(all.data()), all.size()};
}

bool statement::null(int column) const noexcept {
  return sqlite3_column_type(stmt_.get(), column) == SQLITE_NULL;
}

// -- the connection -------------------------------------------------------------------------------

result<std::unique_ptr<database>> database::open(const std::string& path, access how) {
  std::unique_ptr<database> db{new database{path}};
  std::string name = path;
  int flags = SQLITE_OPEN_NOMUTEX;
  switch (how) {
    case access::write: flags |= SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE; break;
    case access::read: flags |= SQLITE_OPEN_READONLY; break;
    case access::immutable:
      flags |= SQLITE_OPEN_READONLY | SQLITE_OPEN_URI;
      name = "file:";
      for (const char c : path) {
        constexpr char digits[] = "0123456789abcdef";
        const auto byte = static_cast<unsigned char>(c);
        ((name += '%') += digits[byte >> 4]) += digits[byte & 15];
      }
      name += "?immutable=1";
      break;
  }
  const int code = sqlite3_open_v2(name.c_str(), &db->handle_, flags, nullptr);
  if (code != SQLITE_OK)
    return tl::unexpected(db->failure(code));
  sqlite3_extended_result_codes(db->handle_, 1);
  sqlite3_busy_timeout(db->handle_, 1000);
  // A database that somebody prepared must not make us call what its schema names.
  sqlite3_db_config(db->handle_, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(db->handle_, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  if (how == access::write) // in place of SQLite's own, which would checkpoint within a commit
    sqlite3_wal_hook(
      db->handle_,
      [](void* self, sqlite3*, const char*, int pages) {
        static_cast<database*>(self)->log_pages_ = pages;
        return SQLITE_OK;
      },
      db.get());
  return db;
}

database::~database() {
  sqlite3_close_v2(handle_);
}

error database::failure(int code) const {
  const std::string words = handle_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(handle_);
  // SQLite repeats what is in the file: a name of a table that nobody of ours made, for one.
  return {errc::io_failed,
          one_line("journal " + path_ + ": " + words + " (SQLite " + std::to_string(code)
                   + ", errno "
                   + std::to_string(handle_ == nullptr ? 0 : sqlite3_system_errno(handle_)) + ")"),
          std::source_location::current()};
}

bool database::damaged(int code) noexcept {
  return (code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB;
}

bool database::may_pass(int code) noexcept {
  return (code & 0xff) == SQLITE_FULL || (code & 0xff) == SQLITE_IOERR;
}

bool database::contradicts(int code) noexcept {
  return (code & 0xff) == SQLITE_CONSTRAINT;
}

int database::last_code() const noexcept {
  return sqlite3_extended_errcode(handle_);
}

result<void> database::run(const std::string& sql) {
  const int code = sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? result<void>{} : tl::unexpected(failure(code));
}

result<std::uint64_t> database::number(const std::string& sql) {
  auto query = prepare(sql);
  if (!query)
    return fail(query);
  const auto row = query->step();
  if (!row)
    return fail(row);
  return *row ? query->number(0) : 0;
}

result<statement> database::prepare(std::string_view sql) const {
  sqlite3_stmt* made = nullptr;
  const int code = sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &made, nullptr);
  if (code != SQLITE_OK)
    return tl::unexpected(failure(code));
  return statement{*this, made};
}

result<void> database::checkpoint(bool truncate) {
  const int code = sqlite3_wal_checkpoint_v2(
    handle_, nullptr, truncate ? SQLITE_CHECKPOINT_TRUNCATE : SQLITE_CHECKPOINT_PASSIVE, nullptr,
    nullptr);
  return code == SQLITE_OK ? result<void>{} : tl::unexpected(failure(code));
}

void database::roll_back() noexcept {
  if (sqlite3_get_autocommit(handle_) == 0)
    sqlite3_exec(handle_, "ROLLBACK", nullptr, nullptr, nullptr);
}

} // namespace rollcast::journal
