#include "tests/support/journal_fold.hpp"

#include "cluster/journal/image.hpp"

namespace rollcast::test {

journal::image record_log::image_of(std::size_t count, std::uint64_t generation) const {
  journal::image out;
  for (std::size_t i = 0; i < count; ++i)
    journal::apply(out, all[i].what, all[i].unix_ns);
  out.generation = generation;
  return out;
}

} // namespace rollcast::test
