// A pretended libnccl.so.2, for tests only: the calls that are used of it, between ranks of one
// process over the emulator, whose device memory is the host's. Non-blocking as the real one: what
// a group of calls began is done while `ncclCommGetAsyncError` is asked. Written from the calls'
// documentation; `pretend_nccl_set` makes things go wrong.

#include "engine/collective/nccl_calls.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

using rollcast::nccl::config;
using rollcast::nccl::in_progress;
using rollcast::nccl::success;
using rollcast::nccl::unique_id;

constexpr int invalid_argument = 4;
constexpr int remote_error = 6;

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
};

std::mutex mutex;
std::map<std::string, ranks> groups;
int ids = 0;
int version = 22809;
bool stuck = false;
thread_local std::vector<std::pair<comm*, call>> grouped;

bool same_end(const call& a, const call& b) {
  return a.kind == b.kind && a.peer == b.peer;
}

/// The first pending call of `c` of that kind with that peer; null if there is none.
call* first(comm* c, int kind, int peer) {
  if (c == nullptr)
    return nullptr;
  const auto it = std::find_if(c->pending.begin(), c->pending.end(),
                               [&](const call& x) { return x.kind == kind && x.peer == peer; });
  return it == c->pending.end() ? nullptr : &*it;
}

/// Copies the first transfer that both sides have begun. @returns whether there was one.
bool copy_one(comm& c) {
  for (auto& mine : c.pending) {
    if (mine.kind == call::broadcast)
      continue;
    const auto* earlier = first(&c, mine.kind, mine.peer);
    auto* other = c.group->all[static_cast<std::size_t>(mine.peer)];
    auto* theirs = first(other, mine.kind == call::send ? call::receive : call::send, c.rank);
    if (earlier != &mine || theirs == nullptr)
      continue;
    if (theirs->bytes != mine.bytes) {
      c.group->failed = true;
      return false;
    }
    const auto& out = mine.kind == call::send ? mine : *theirs;
    std::memcpy(mine.kind == call::send ? theirs->to : mine.to, out.from, mine.bytes);
    const call gone = *theirs, done = mine;
    std::erase_if(other->pending, [&, once = false](const call& x) mutable {
      return !once && same_end(x, gone) && (once = true);
    });
    std::erase_if(c.pending, [&, once = false](const call& x) mutable {
      return !once && same_end(x, done) && (once = true);
    });
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
  for (auto* c : g.all)
    if (c->pending[0].to != root.from)
      std::memcpy(c->pending[0].to, root.from, root.bytes);
  for (auto* c : g.all)
    c->pending.erase(c->pending.begin());
}

int begin(void* c, call what) {
  grouped.emplace_back(static_cast<comm*>(c), what);
  return success;
}

} // namespace

extern "C" {

int ncclGetVersion(int* out) {
  *out = version;
  return success;
}

int ncclGetUniqueId(unique_id* out) {
  const std::scoped_lock lock{mutex};
  const auto text = "pretended " + std::to_string(++ids);
  std::copy(text.begin(), text.end(), out->bytes.begin());
  return success;
}

int ncclCommInitRankConfig(void** out, int size, unique_id id, int rank, config* how) {
  const std::scoped_lock lock{mutex};
  if (how->magic != 0xcafebeef || how->blocking != 0 || how->size < sizeof(config))
    return invalid_argument;
  auto& g = groups[std::string{id.bytes.begin(), id.bytes.end()}];
  g.all.resize(static_cast<std::size_t>(size));
  auto*& seat = g.all.at(static_cast<std::size_t>(rank));
  if (seat != nullptr)
    return invalid_argument;
  *out = seat = new comm{&g, rank, {}};
  return in_progress;
}

int ncclCommAbort(void* c) {
  const std::scoped_lock lock{mutex};
  auto* mine = static_cast<comm*>(c);
  mine->group->all[static_cast<std::size_t>(mine->rank)] = nullptr;
  mine->group->failed = true;
  delete mine;
  return success;
}

int ncclCommGetAsyncError(void* c, int* out) {
  const std::scoped_lock lock{mutex};
  auto& mine = *static_cast<comm*>(c);
  auto& g = *mine.group;
  const bool formed =
    std::none_of(g.all.begin(), g.all.end(), [](comm* x) { return x == nullptr; });
  while (!stuck && formed && copy_one(mine)) {
  }
  if (!stuck && formed)
    copy_broadcast(g);
  *out = g.failed                                    ? remote_error
         : stuck || !formed || !mine.pending.empty() ? in_progress
                                                     : success;
  return success;
}

const char* ncclGetErrorString(int code) {
  return code == remote_error ? "remote process exited or there was a network error" : "an error";
}

int ncclGroupStart() {
  grouped.clear();
  return success;
}

int ncclGroupEnd() {
  const std::scoped_lock lock{mutex};
  for (auto& [c, what] : grouped)
    c->pending.push_back(what);
  return grouped.empty() ? success : in_progress;
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

/// "stuck": nothing goes on while 1. "version": what is said of it.
void pretend_nccl_set(const char* what, int value) {
  const std::scoped_lock lock{mutex};
  if (std::string{what} == "stuck")
    stuck = value != 0;
  else
    version = value;
}

} // extern "C"
