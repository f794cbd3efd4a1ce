#include "engine/model/tensor_source.hpp"

#include "engine/model/json_reader.hpp"
#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_text.hpp"

#include <utility>

namespace rollcast {

result<void> tensor_set::add(tensor_view tensor, std::shared_ptr<const void> owner) {
  const auto bytes = bytes_of({tensor.name, tensor.type, tensor.shape, {}});
  if (tensor.bytes.size() != bytes)
    return fail(errc::bad_checkpoint,
                origin_ + ": tensor " + printable(tensor.name) + " has "
                  + std::to_string(tensor.bytes.size()) + " bytes, " + shown(tensor.shape) + " of "
                  + std::string(name_of(tensor.type)) + " are " + std::to_string(bytes));
  const auto [at, fresh] = tensors_.try_emplace(tensor.name);
  if (!fresh)
    return fail(errc::bad_checkpoint,
                origin_ + ": tensor " + printable(tensor.name) + " is there twice; send each once");
  at->second = {std::move(tensor), std::move(owner)};
  return {};
}

std::vector<std::string_view> tensor_set::names() const {
  std::vector<std::string_view> out;
  for (const auto& [name, held] : tensors_)
    out.push_back(name);
  return out;
}

result<tensor_view> tensor_set::tensor(std::string_view name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end())
    return fail(errc::bad_checkpoint, origin_ + ": tensor " + printable(name) + " is missing");
  return at->second.view;
}

std::vector<std::string_view> tensor_subset::names() const {
  auto out = all_.names();
  std::erase_if(out, [&](std::string_view name) { return !name.starts_with(prefix_); });
  return out;
}

} // namespace rollcast
