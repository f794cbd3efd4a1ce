#include "engine/model/tensor_check.hpp"

#include "engine/model/finite.hpp"
#include "engine/model/json_reader.hpp"
#include "engine/model/tensor_text.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <set>
#include <vector>

namespace rollcast {

namespace {

/// "3 tensors missing: a, b, c" with at most five names.
std::string listing(const std::vector<std::string_view>& names, std::string_view what) {
  constexpr std::size_t named_max = 5;
  std::string out = std::to_string(names.size()) + (names.size() == 1 ? " tensor " : " tensors ")
                    + std::string(what);
  for (std::size_t i = 0; i < std::min(named_max, names.size()); ++i)
    out += (i == 0 ? ": " : ", ") + printable(names[i]);
  return names.size() > named_max ? out + ", ..." : out;
}

} // namespace

result<void> check_names(const model_config& config, std::span<const planned_tensor> plan,
                         std::span<const std::string_view> names, bool complete,
                         std::string_view origin) {
  const std::set<std::string_view> there(names.begin(), names.end());
  std::vector<std::string_view> missing;
  std::set<std::string_view> planned;
  for (const auto& tensor : plan) {
    planned.insert(tensor.name);
    if (complete && !there.contains(tensor.name))
      missing.push_back(tensor.name);
  }
  std::vector<std::string_view> unknown;
  bool changes_any = false;
  for (const auto name : names) {
    changes_any = changes_any || planned.contains(name) || name.starts_with(draft_prefix);
    if (!planned.contains(name) && !is_known_extra(config, name))
      unknown.push_back(name);
  }
  if (missing.empty() && unknown.empty() && changes_any)
    return {};
  const std::string_view what =
    config.draft.kind == draft_kind::eagle3 ? eagle3_class_name : class_name(config.family);
  std::string detail =
    std::string(origin) + ": not a " + std::string(what) + " of this config.json: ";
  if (!missing.empty())
    detail += listing(missing, "missing");
  if (!unknown.empty())
    detail += (missing.empty() ? "" : "; ") + listing(unknown, "unknown");
  if (missing.empty() && unknown.empty())
    detail += "none of its tensors is there; send at least one";
  return fail(errc::bad_checkpoint, detail);
}

result<void> check_shape(const planned_tensor& planned, std::span<const std::size_t> shape,
                         std::string_view origin) {
  if (std::equal(shape.begin(), shape.end(), planned.shape.begin(), planned.shape.end()))
    return {};
  return fail(errc::bad_checkpoint, std::string(origin) + ": tensor " + planned.name + " has shape "
                                      + shown(shape) + ", config.json asks for "
                                      + shown(planned.shape));
}

result<void> check_tensors(const model_config& config, std::span<const tensor_info> tensors,
                           bool complete, std::string_view origin) {
  const auto plan = plan_tensors(config);
  std::map<std::string_view, const tensor_info*> by_name;
  std::vector<std::string_view> names;
  for (const auto& tensor : tensors) {
    if (!by_name.emplace(tensor.name, &tensor).second)
      return fail(errc::bad_checkpoint, std::string(origin) + ": tensor " + printable(tensor.name)
                                          + " is there twice; send each once");
    names.push_back(tensor.name);
  }
  if (const auto named = check_names(config, plan, names, complete, origin); !named)
    return named;
  for (const auto& planned : plan) {
    const auto at = by_name.find(planned.name);
    if (at == by_name.end())
      continue;
    if (const auto shaped = check_shape(planned, at->second->shape, origin); !shaped)
      return shaped;
  }
  return {};
}

result<void> check_finite(const tensor_view& tensor, std::size_t begin, std::size_t count,
                          bool rounds_to_bf16, const tensor_source& source) {
  const std::size_t size = kernels::size_of(tensor.type);
  const auto bad =
    first_non_finite(tensor.bytes.subspan(begin * size, count * size), tensor.type, rounds_to_bf16);
  if (!bad)
    return {};
  const std::size_t at = begin + *bad;
  std::vector<std::size_t> index{at};
  if (tensor.shape.size() == 2)
    index = {at / tensor.shape[1], at % tensor.shape[1]};
  std::array<char, 32> value{};
  std::snprintf(value.data(), value.size(), "%g",
                static_cast<double>(element_at(tensor.bytes, tensor.type, at)));
  return fail(errc::bad_checkpoint, source.origin(tensor.name) + ": tensor " + tensor.name
                                      + shown(index) + " = " + value.data()
                                      + "; weights must be finite"
                                      + (rounds_to_bf16 ? " when rounded to bf16" : ""));
}

} // namespace rollcast
