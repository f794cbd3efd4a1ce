#include "cluster/journal/journal.hpp"

#include "cluster/journal/lock_file.hpp"
#include "cluster/journal/schema.hpp"
#include "cluster/journal/sqlite.hpp"
#include "cluster/journal/store.hpp"
#include "engine/base/check.hpp"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace rollcast::journal {

namespace {

using std::chrono::steady_clock;

constexpr auto closing_max = std::chrono::seconds{5};
/// Of one commit: what is tried again as a whole, and what one waits for before it is durable.
constexpr std::size_t group_bytes_max = std::size_t{16} << 20;
constexpr std::size_t group_records_max = 16'384;
/// The log is moved to the database past so many pages (16 MiB), between two commits.
constexpr int log_pages_max = 4'096;
/// Free pages that are kept for what comes next: so many, or a quarter of those in use.
constexpr std::uint64_t free_pages_kept = 1'024;
constexpr std::uint64_t trimmed_at_once = 256;

std::size_t bytes_of(const wire::submit_batch& spec) {
  std::size_t bytes = sizeof spec;
  for (const auto& g : spec.groups)
    bytes += sizeof g + g.id.size() + g.prompt_token_ids.size() * sizeof(token_id)
             + (g.sampling ? g.sampling->stop_token_ids.size() * sizeof(token_id) : 0);
  return bytes;
}

/// About what a record holds in memory until it is on disk.
std::size_t bytes_of(const record& what) {
  if (const auto* edge = std::get_if<chunk_edge>(&what))
    return sizeof(entry) + edge->tokens.size() * sizeof(token_id)
           + (edge->logprobs.size() + edge->kept_masses.size()) * sizeof(float)
           + edge->experts.size();
  if (const auto* batch = std::get_if<batch_submitted>(&what))
    return sizeof(entry) + bytes_of(*batch->spec);
  if (const auto* end = std::get_if<batch_ended>(&what))
    return sizeof(entry) + end->summary.workers.size() * sizeof(wire::worker_summary);
  return sizeof(entry);
}

std::uint64_t unix_ns() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                      std::chrono::system_clock::now().time_since_epoch())
                                      .count());
}

} // namespace

// -- the thread -----------------------------------------------------------------------------------

class journal::writer {
public:
  writer(journal_options options, lock_file lock, std::unique_ptr<database> db, store tables)
    : options_(std::move(options)), lock_(std::move(lock)), db_(std::move(db)),
      tables_(std::move(tables)) {
    measure();
    thread_ = std::thread{[this] { loop(); }};
  }

  ~writer() {
    {
      const std::lock_guard guard{mutex_};
      stopping_ = true;
      stop_at_ = steady_clock::now() + closing_max;
    }
    wake_.notify_all();
    thread_.join();
  }
  writer(const writer&) = delete;
  writer& operator=(const writer&) = delete;

  void write(record what) {
    const auto bytes = bytes_of(what);
    bool wake = false;
    {
      const std::lock_guard guard{mutex_};
      // The thread is not woken for each record that it gathers.
      wake = queue_.empty()
             || (queued_bytes_ < group_bytes_max && queued_bytes_ + bytes >= group_bytes_max);
      pending_bytes_ += bytes;
      queued_bytes_ += bytes;
      queue_.push_back({std::move(what), unix_ns(), bytes});
      written_.fetch_add(1, std::memory_order_release);
    }
    if (wake)
      wake_.notify_one();
  }

  std::uint64_t written() const noexcept { return written_.load(std::memory_order_acquire); }
  std::uint64_t durable() const noexcept { return durable_.load(std::memory_order_acquire); }

  void on_commit(std::function<void(std::uint64_t, double)> told) {
    const std::lock_guard guard{mutex_};
    ROLLCAST_CHECK(written() == 0);
    told_ = std::move(told);
  }

  journal_health health() const;

private:
  struct pending {
    record what;
    std::uint64_t unix_ns = 0;
    std::size_t bytes = 0;
  };

  void loop();
  bool gather();
  bool commit();
  bool wait_to_retry(const error& why);
  void succeeded(double seconds);
  void keep_house();
  bool idle() const;
  void measure();

  const journal_options options_;
  const lock_file lock_;
  const std::unique_ptr<database> db_; // of the thread, once it runs, so are these
  store tables_;
  std::vector<entry> group_;
  std::size_t group_bytes_ = 0;
  steady_clock::time_point last_commit_{};
  std::uint64_t free_pages_ = 0;
  std::uint64_t used_pages_ = 0;

  std::atomic<std::uint64_t> written_{0};
  std::atomic<std::uint64_t> durable_{0};
  std::atomic<std::uint64_t> bytes_{0};

  mutable std::mutex mutex_; // of what follows
  std::condition_variable wake_;
  std::deque<pending> queue_;
  std::size_t queued_bytes_ = 0;
  std::size_t pending_bytes_ = 0; ///< Of the queue and of the group that is tried.
  std::string failure_;           ///< Why the last commit failed; empty if it did not.
  std::function<void(std::uint64_t, double)> told_;
  bool stopping_ = false;
  steady_clock::time_point stop_at_{};

  std::thread thread_; // last: it uses all of the above
};

void journal::writer::loop() {
  while (gather()) {
    if (!commit())
      return;
    keep_house();
  }
}

/// Waits for records and takes as many as one commit may have. An idle journal takes the first at
/// once; otherwise commits begin `gather` apart, so that what comes meanwhile shares one.
/// @returns false when there is nothing left and there will be nothing.
bool journal::writer::gather() {
  std::unique_lock lock{mutex_};
  wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
  wake_.wait_until(lock, last_commit_ + options_.gather,
                   [this] { return stopping_ || queued_bytes_ >= group_bytes_max; });
  group_.clear();
  group_bytes_ = 0;
  while (!queue_.empty() && group_.size() < group_records_max && group_bytes_ < group_bytes_max) {
    auto one = std::move(queue_.front());
    queue_.pop_front();
    group_bytes_ += one.bytes;
    group_.push_back({.what = std::move(one.what), .unix_ns = one.unix_ns});
  }
  queued_bytes_ -= group_bytes_;
  last_commit_ = steady_clock::now();
  lock.unlock();
  for (auto& e : group_)
    e = tables_.settle(std::move(e.what), e.unix_ns);
  return !group_.empty();
}

/// Tries until the group is on disk. @returns false if the journal is closed before.
bool journal::writer::commit() {
  for (;;) {
    const auto began = steady_clock::now();
    const auto ok = tables_.commit(group_);
    if (ok) {
      succeeded(std::chrono::duration<double>(steady_clock::now() - began).count());
      return true;
    }
    if (!wait_to_retry(ok.error()))
      return false;
    // A log that is no longer needed may be what fills the disk. If not even that can be done, the
    // next try says so.
    (void)db_->checkpoint(true);
  }
}

void journal::writer::succeeded(double seconds) {
  std::string was;
  {
    const std::lock_guard guard{mutex_};
    pending_bytes_ -= group_bytes_;
    was.swap(failure_);
  }
  if (!was.empty())
    spdlog::warn("journal {}: writes again", options_.path);
  measure();
  const auto now = durable_.fetch_add(group_.size(), std::memory_order_acq_rel) + group_.size();
  if (told_)
    told_(now, seconds);
}

/// @returns false if the journal is closed and has had its time.
bool journal::writer::wait_to_retry(const error& why) {
  std::unique_lock lock{mutex_};
  const bool first = failure_.empty();
  failure_ = why.detail;
  if (stopping_ && steady_clock::now() >= stop_at_) {
    const auto lost = written() - durable();
    lock.unlock();
    spdlog::error("{}; closed without {} records", why.detail, lost);
    return false;
  }
  if (first) {
    lock.unlock();
    spdlog::error("{}; no new batches until it is tried again with success, every {} ms",
                  why.detail, options_.retry.count());
    lock.lock();
  }
  const bool was_stopping = stopping_;
  wake_.wait_for(lock, options_.retry, [&] { return stopping_ && !was_stopping; });
  return true;
}

/// Moves the log to the database, and gives pages back that are free, a few at a time as long as
/// there is nothing to write. What fails here is tried again after the next commit.
void journal::writer::keep_house() {
  if (db_->log_pages() >= log_pages_max)
    (void)db_->checkpoint(false);
  bool trimmed = false;
  while (free_pages_ > std::max(free_pages_kept, used_pages_ / 4) && idle()) {
    const auto before = free_pages_;
    if (!db_->run("PRAGMA incremental_vacuum(" + std::to_string(trimmed_at_once) + ")"))
      return;
    measure();
    if (free_pages_ >= before)
      return;
    trimmed = true;
  }
  if (trimmed)
    (void)db_->checkpoint(false);
}

bool journal::writer::idle() const {
  const std::lock_guard guard{mutex_};
  return queue_.empty() && !stopping_;
}

/// Keeps the last numbers if these cannot be read.
void journal::writer::measure() {
  const auto pages = db_->number("PRAGMA page_count");
  const auto free = db_->number("PRAGMA freelist_count");
  const auto page_bytes = db_->number("PRAGMA page_size");
  if (!pages || !free || !page_bytes)
    return;
  free_pages_ = *free;
  used_pages_ = *pages - *free;
  bytes_.store(used_pages_ * *page_bytes, std::memory_order_relaxed);
}

journal_health journal::writer::health() const {
  journal_health out;
  out.bytes = bytes_.load(std::memory_order_relaxed);
  const std::lock_guard guard{mutex_};
  out.pending_bytes = pending_bytes_;
  if (!failure_.empty())
    out.why_not = failure_ + "; make room or mend the disk, it is tried again every "
                  + std::to_string(options_.retry.count()) + " ms";
  else if (out.pending_bytes > options_.pending_bytes_max)
    out.why_not = "journal " + options_.path + ": " + std::to_string(out.pending_bytes)
                  + " bytes are not on disk yet, limit "
                  + std::to_string(options_.pending_bytes_max) + "; submit again later";
  else if (out.bytes > options_.bytes_max)
    out.why_not = "journal " + options_.path + ": " + std::to_string(out.bytes)
                  + " bytes are kept, limit " + std::to_string(options_.bytes_max)
                  + "; acknowledge results, or drop them with `rollcast discard --batch-key KEY`";
  out.takes_batches = out.why_not.empty();
  return out;
}

// -- the journal ----------------------------------------------------------------------------------

namespace {

/// Makes the file, for its owner only: prompts and responses are nobody else's. SQLite gives the
/// files beside it the same rights.
result<void> make_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0)
    return fail(errc::bad_config,
                "journal " + path + ": cannot be opened: " + std::generic_category().message(errno)
                  + "; name a file that can be read and written");
  ::close(fd);
  return {};
}

/// Reads what is there and makes it this process's.
result<image> take_over(database& db) {
  if (auto ok = check_schema(db, true); !ok)
    return fail(ok);
  if (auto ok = migrate(db); !ok)
    return fail(ok);
  auto found = load(db);
  if (!found)
    return fail(found);
  ++found->generation;
  if (auto ok = db.run("UPDATE meta SET generation = " + std::to_string(found->generation)); !ok)
    return tl::unexpected(refusal(db, ok.error()));
  return found;
}

} // namespace

result<journal::opened> journal::open(journal_options options) {
  std::error_code unresolved;
  if (options.path.empty() || std::filesystem::is_directory(options.path, unresolved))
    return fail(errc::bad_config, "journal '" + options.path + "': name a file");
  // One lock, by whatever name.
  const auto resolved = std::filesystem::weakly_canonical(options.path, unresolved);
  if (!unresolved)
    options.path = resolved.string();
  auto lock = lock_file::take(options.path);
  if (!lock)
    return fail(lock);
  if (auto ok = make_file(options.path); !ok)
    return fail(ok);
  auto db = database::open(options.path, access::write);
  if (!db)
    return fail(errc::bad_config, db.error().detail);
  auto found = take_over(**db);
  if (!found)
    return fail(found);
  auto tables = store::make(**db, *found);
  if (!tables)
    return tl::unexpected(refusal(**db, tables.error()));
  auto thread = std::make_unique<writer>(std::move(options), std::move(*lock), std::move(*db),
                                         std::move(*tables));
  return opened{std::unique_ptr<journal>{new journal{std::move(thread)}}, std::move(*found)};
}

journal::journal(std::unique_ptr<writer> w) noexcept : writer_(std::move(w)) {}

journal::~journal() = default;

void journal::write(record what) {
  writer_->write(std::move(what));
}

std::uint64_t journal::written() const noexcept {
  return writer_->written();
}

std::uint64_t journal::durable() const noexcept {
  return writer_->durable();
}

void journal::on_commit(std::function<void(std::uint64_t, double)> told) {
  writer_->on_commit(std::move(told));
}

journal_health journal::health() const {
  return writer_->health();
}

} // namespace rollcast::journal
