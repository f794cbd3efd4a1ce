#include "engine/model/tensor_views.hpp"

#include "engine/base/check.hpp"
#include "engine/model/tensor_check.hpp"
#include "engine/model/tensor_text.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace rollcast {
namespace {

/// @pre one has this name.
const tensor_info& info_in(std::span<const tensor_info> all, std::string_view name) {
  const auto at =
    std::lower_bound(all.begin(), all.end(), name,
                     [](const tensor_info& x, std::string_view y) { return x.name < y; });
  ROLLCAST_CHECK(at != all.end() && at->name == name);
  return *at;
}

} // namespace

result<tensor_views> view_tensors(std::span<const planned_tensor> plan, const tensor_source& source,
                                  std::optional<std::span<const tensor_info>> base) {
  tensor_views out;
  for (const auto& planned : plan) {
    if (base && !source.contains(planned.name)) {
      out.infos.push_back(info_in(*base, planned.name));
      out.views.push_back(std::nullopt);
      continue;
    }
    auto view = source.tensor(planned.name);
    if (!view)
      return fail(view);
    if (auto shaped = check_shape(planned, view->shape, source.origin(planned.name)); !shaped)
      return fail(shaped);
    if (base) {
      // Another dtype could need another layout, and with it the base's source bytes.
      const auto type = info_in(*base, planned.name).type;
      if (view->type != type)
        return fail(errc::bad_checkpoint,
                    source.origin(planned.name) + ": tensor " + planned.name + " is of "
                      + std::string(name_of(view->type)) + ", the weights that it changes are of "
                      + std::string(name_of(type)) + "; send every tensor to change dtypes");
    }
    out.infos.push_back({planned.name, view->type, view->shape, {}});
    out.views.emplace_back(std::move(*view));
  }
  return out;
}

} // namespace rollcast
