// A pretended libnccl.so.2, for tests only: the calls that are used of it, between ranks of one
// process over the emulator, whose device memory is the host's. Non-blocking as the real one: what
// a group of calls began is done while `ncclCommGetAsyncError` is asked, and not at the first time.
// As strict as the real one too: a call that it would refuse is refused, and counted as a misuse.
// Written from the calls' documentation; `pretend_nccl_set` makes things go wrong.

#include "engine/collective/nccl_calls.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

using rollcast::nccl::config;
using rollcast::nccl::in_progress;
using rollcast::nccl::success;
using rollcast::nccl::unique_id;

constexpr int internal_error = 3;
constexpr int invalid_argument = 4;
constexpr int invalid_usage = 5;
constexpr int remote_error = 6;
constexpr int lag_polls = 3; ///< For which what was begun is said to be in progress, at the least.

struct call {
  enum { send, receive, broadcast } kind;
  const void* from;
  void* to;
  std::size_t bytes;
  int peer;
};

struct comm;
struct ranks {
  std::vector<comm*> all;
  bool failed = false;
};
struct comm {
  ranks* group;
  int rank;
  std::vector<call> pending;
  int lag = lag_polls;
  bool settled = false; ///< It was told that nothing is in progress.
  bool aborted = false;
};

std::mutex mutex;
std::map<std::string, ranks> groups;
std::vector<std::unique_ptr<comm>>
  comms; ///< Also those that were aborted, to catch who calls them.
int ids = 0;
int version = 22809;
bool stuck = false;
bool file_blocks = false;
int refused_call = 0; ///< Of those to come, which one fails; 0: none.
int misuses = 0;
thread_local int depth = 0;
thread_local int group_error = success;
thread_local std::vector<std::pair<comm*, call>> grouped;

int misuse(int code) {
  ++misuses;
  return code;
}

/// As the real one does at its first use, which asking for its version is not.
void read_file() {
  if (file_blocks)
    ::setenv("NCCL_COMM_BLOCKING", "1", 0);
}

/// The first pending call of `c` of that kind with that peer; null if there is none.
call* first(comm* c, int kind, int peer) {
  if (c == nullptr)
    return nullptr;
  const auto it = std::find_if(c->pending.begin(), c->pending.end(),
                               [&](const call& x) { return x.kind == kind && x.peer == peer; });
  return it == c->pending.end() ? nullptr : &*it;
}

void take_out(comm& c, int kind, int peer) {
  c.pending.erase(c.pending.begin() + (first(&c, kind, peer) - c.pending.data()));
}

/// Copies the first transfer that both sides have begun. @returns whether there was one.
bool copy_one(comm& c) {
  for (const auto& mine : c.pending) {
    if (mine.kind == call::broadcast)
      continue;
    const int other_kind = mine.kind == call::send ? call::receive : call::send;
    auto* other = c.group->all[static_cast<std::size_t>(mine.peer)];
    const auto* theirs = first(other, other_kind, c.rank);
    if (first(&c, mine.kind, mine.peer) != &mine || theirs == nullptr)
      continue;
    if (theirs->bytes != mine.bytes) {
      ++misuses;
      c.group->failed = true;
      return false;
    }
    const auto& out = mine.kind == call::send ? mine : *theirs;
    std::memcpy(mine.kind == call::send ? theirs->to : mine.to, out.from, mine.bytes);
    const int kind = mine.kind, peer = mine.peer;
    take_out(c, kind, peer);
    take_out(*other, other_kind, c.rank);
    return true;
  }
  return false;
}

/// Copies a broadcast once every rank has begun it.
void copy_broadcast(ranks& g) {
  if (!std::all_of(g.all.begin(), g.all.end(), [](comm* c) {
        return c != nullptr && !c->pending.empty() && c->pending[0].kind == call::broadcast;
      }))
    return;
  const auto& root = g.all[static_cast<std::size_t>(g.all[0]->pending[0].peer)]->pending[0];
  if (std::any_of(g.all.begin(), g.all.end(), [&](comm* c) {
        return c->pending[0].bytes != root.bytes || c->pending[0].peer != root.peer;
      })) {
    ++misuses; // the real one would hang, or write where it should not
    g.failed = true;
    return;
  }
  for (auto* c : g.all)
    if (c->pending[0].to != root.from)
      std::memcpy(c->pending[0].to, root.from, root.bytes);
  for (auto* c : g.all)
    c->pending.erase(c->pending.begin());
}

int begin(void* c, call what) {
  const std::scoped_lock lock{mutex};
  auto* mine = static_cast<comm*>(c);
  int said = success;
  if (mine == nullptr || mine->aborted)
    said = misuse(invalid_argument);
  else if (depth == 0 || !mine->settled) // the real one says that what runs must end first
    said = misuse(invalid_usage);
  else if (refused_call > 0 && --refused_call == 0)
    said = internal_error;
  if (said == success)
    grouped.emplace_back(mine, what);
  else
    group_error = said;
  return said;
}

} // namespace

extern "C" {

int ncclGetVersion(int* out) {
  *out = version;
  return success;
}

int ncclGetUniqueId(unique_id* out) {
  const std::scoped_lock lock{mutex};
  read_file();
  const auto text = "pretended " + std::to_string(++ids);
  std::copy(text.begin(), text.end(), out->bytes.begin());
  return success;
}

int ncclCommInitRankConfig(void** out, int size, unique_id id, int rank, config* how) {
  const std::scoped_lock lock{mutex};
  read_file();
  const char* const blocking = std::getenv("NCCL_COMM_BLOCKING");
  if (how->magic != 0xcafebeef || how->blocking != 0 || how->size < sizeof(config)
      || (blocking != nullptr && *blocking == '1'))
    return misuse(invalid_argument);
  auto& g = groups[std::string{id.bytes.begin(), id.bytes.end()}];
  g.all.resize(static_cast<std::size_t>(size));
  auto*& seat = g.all.at(static_cast<std::size_t>(rank));
  if (seat != nullptr)
    return misuse(invalid_argument);
  *out = seat = comms.emplace_back(std::make_unique<comm>(comm{&g, rank, {}})).get();
  return in_progress;
}

int ncclCommAbort(void* c) {
  const std::scoped_lock lock{mutex};
  auto* mine = static_cast<comm*>(c);
  if (mine == nullptr || mine->aborted)
    return misuse(invalid_argument);
  mine->group->all[static_cast<std::size_t>(mine->rank)] = nullptr;
  mine->group->failed = true;
  mine->pending.clear();
  mine->aborted = true;
  return success;
}

int ncclCommGetAsyncError(void* c, int* out) {
  const std::scoped_lock lock{mutex};
  if (c == nullptr || static_cast<comm*>(c)->aborted)
    return misuse(invalid_argument);
  auto& mine = *static_cast<comm*>(c);
  auto& g = *mine.group;
  const bool formed =
    std::none_of(g.all.begin(), g.all.end(), [](comm* x) { return x == nullptr; });
  const bool lags = mine.lag > 0;
  mine.lag -= lags ? 1 : 0;
  const bool works = !stuck && formed && !lags && !g.failed;
  while (works && copy_one(mine)) {
  }
  if (works)
    copy_broadcast(g);
  *out = g.failed ? remote_error : !works || !mine.pending.empty() ? in_progress : success;
  mine.settled = *out == success;
  return success;
}

const char* ncclGetErrorString(int code) {
  switch (code) {
    case internal_error: return "internal error";
    case invalid_argument: return "invalid argument";
    case invalid_usage: return "invalid usage";
    case remote_error: return "remote process exited or there was a network error";
    default: return "an error";
  }
}

int ncclGroupStart() {
  ++depth;
  return success;
}

int ncclGroupEnd() {
  const std::scoped_lock lock{mutex};
  if (depth == 0)
    return misuse(invalid_usage);
  if (--depth > 0)
    return success;
  const auto calls = std::exchange(grouped, {});
  if (const int failed = std::exchange(group_error, success); failed != success)
    return failed;
  for (const auto& [c, what] : calls) {
    c->pending.push_back(what);
    c->lag = lag_polls;
    c->settled = false;
  }
  return calls.empty() ? success : in_progress;
}

int ncclSend(const void* from, std::size_t bytes, int, int peer, void* c, void*) {
  return begin(c, {call::send, from, nullptr, bytes, peer});
}

int ncclRecv(void* to, std::size_t bytes, int, int peer, void* c, void*) {
  return begin(c, {call::receive, nullptr, to, bytes, peer});
}

int ncclBroadcast(const void* from, void* to, std::size_t bytes, int, int root, void* c, void*) {
  return begin(c, {call::broadcast, from, to, bytes, root});
}

/// "stuck": nothing goes on while 1. "file blocks": NCCL's file says NCCL_COMM_BLOCKING=1, while 1.
/// "refuse": so many calls from now, one fails. "version": what is said of it.
void pretend_nccl_set(const char* what, int value) {
  const std::scoped_lock lock{mutex};
  const std::string name{what};
  if (name == "stuck")
    stuck = value != 0;
  else if (name == "refuse")
    refused_call = value;
  else if (name == "file blocks")
    file_blocks = value != 0;
  else
    version = value;
}

/// Calls that the real library would have refused, since it was last asked.
int pretend_nccl_misuses() {
  const std::scoped_lock lock{mutex};
  return std::exchange(misuses, 0);
}

} // extern "C"
