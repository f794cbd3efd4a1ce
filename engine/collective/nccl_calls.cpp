#include "engine/collective/nccl_calls.hpp"

#include <dlfcn.h>

namespace rollcast::nccl {
namespace {

/// Before it, an abort while a group forms races with NCCL's own thread.
constexpr int oldest = 21800;

template <class T>
bool look_up(void* library, const char* name, T& call) {
  call = reinterpret_cast<T>(::dlsym(library, name));
  return call != nullptr;
}

bool load(void* library, calls& c) {
  return look_up(library, "ncclGetVersion", c.get_version)
         && look_up(library, "ncclGetUniqueId", c.get_unique_id)
         && look_up(library, "ncclCommInitRankConfig", c.init_rank)
         && look_up(library, "ncclCommAbort", c.abort)
         && look_up(library, "ncclCommGetAsyncError", c.async_error)
         && look_up(library, "ncclGetErrorString", c.words)
         && look_up(library, "ncclGroupStart", c.group_start)
         && look_up(library, "ncclGroupEnd", c.group_end) && look_up(library, "ncclSend", c.send)
         && look_up(library, "ncclRecv", c.receive)
         && look_up(library, "ncclBroadcast", c.broadcast);
}

} // namespace

std::unique_ptr<calls> calls::find(const std::string& path, std::string& why_not) {
  void* library = nullptr;
  if (!path.empty())
    library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  else
    for (const auto* name : {"libnccl.so.2", "libnccl.so"})
      if (library == nullptr)
        library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  auto found = std::make_unique<calls>();
  int version = 0;
  if (library == nullptr)
    why_not = "no " + (path.empty() ? "libnccl.so.2 in the loader's path (LD_LIBRARY_PATH)" : path);
  else if (!load(library, *found))
    why_not = "the NCCL that was found lacks a call that is needed";
  else if (found->get_version(&version) != success || version < oldest)
    why_not = "NCCL " + std::to_string(version) + " was found, " + std::to_string(oldest)
              + " (2.18) is the oldest that will do";
  else
    return found;
  return nullptr; // the library stays loaded: it does not like to go
}

} // namespace rollcast::nccl
