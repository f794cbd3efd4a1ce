#include "cluster/weights/weight_cargo.hpp"
#include "engine/model/checkpoint.hpp"

#include <algorithm>
#include <atomic>
#include <thread>

namespace rollcast {

result<std::shared_ptr<weight_cargo>>
open_cargo(const std::filesystem::path& directory,
           const std::function<bool(std::string_view)>& wanted, std::uint32_t slice_bytes,
           std::size_t threads) {
  auto opened = checkpoint::open(directory);
  if (!opened)
    return fail(opened);
  const auto source = std::make_shared<checkpoint>(std::move(*opened));
  std::vector<tensor_info> tensors;
  std::vector<kept_bytes> content;
  for (const auto name : source->names()) {
    if (wanted && !wanted(name))
      continue;
    auto view = source->tensor(name);
    if (!view)
      return fail(view);
    if (view->bytes.empty())
      return fail(errc::bad_checkpoint,
                  source->origin(name) + ": tensor " + view->name + " has no elements");
    tensors.push_back({std::move(view->name), view->type, std::move(view->shape), {}});
    content.push_back({source, view->bytes});
  }
  std::atomic<std::size_t> next{0};
  const auto hash_some = [&] {
    for (auto i = next++; i < tensors.size(); i = next++)
      tensors[i].hash = hash_bytes(content[i].bytes);
  };
  {
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < std::max<std::size_t>(threads, 1); ++i)
      helpers.emplace_back(hash_some);
    hash_some();
  }
  return weight_cargo::of(std::move(tensors), std::move(content), slice_bytes);
}

} // namespace rollcast
