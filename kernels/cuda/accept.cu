#include "kernels/cuda/accept.hpp"
#include "kernels/cuda/launch.cuh"

namespace rollcast::kernels::cuda {
namespace {

constexpr unsigned accept_threads = 128;

/// One thread a tree: parents come before children, so that one pass follows the only path there
/// is.
ROLLCAST_KERNEL(accept_threads, 1) accept_kernel(accept_args args) {
  const std::size_t i = std::size_t{simt::block_x()} * accept_threads + simt::thread_x();
  if (i >= args.count)
    return;
  const tree_span tree = args.trees[i];
  accepted_path path{0, 0};
  if (tree.nodes != 0) {
    std::uint32_t* const nodes = args.path + tree.begin;
    nodes[0] = 0;
    std::int32_t next = args.sampled[tree.begin].token;
    for (std::uint32_t node = 1; node < tree.nodes; ++node) {
      const std::size_t at = std::size_t{tree.begin} + node;
      if (args.parents[at] != path.last || args.tokens[at] != next)
        continue;
      path.last = node;
      nodes[++path.length] = node;
      next = args.sampled[at].token;
    }
  }
  args.out[i] = path;
}

} // namespace

device_status accept_drafts(const accept_args& args, stream_handle stream) {
  if (args.count == 0)
    return {};
  const auto blocks = static_cast<unsigned>((args.count + accept_threads - 1) / accept_threads);
  return launch("accept_drafts", accept_kernel, {{blocks, 1, 1}, accept_threads, 0}, args, stream);
}

} // namespace rollcast::kernels::cuda
