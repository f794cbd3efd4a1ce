#include "engine/model/checkpoint.hpp"

#include "engine/model/fp8_blocks.hpp"
#include "engine/model/json_reader.hpp"
#include "engine/model/tensor_text.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <set>
#include <system_error>
#include <utility>

namespace rollcast {

namespace {

constexpr std::size_t index_bytes_max = std::size_t{100} << 20;
constexpr std::size_t shards_max = 4096;

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

} // namespace

// -- one file -----------------------------------------------------------------

result<mapped_file> mapped_file::open(const std::filesystem::path& path) {
  const auto failed = [&](const char* what) {
    return fail(errc::io_failed, path.string() + ": cannot " + what + ": " + std::strerror(errno));
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0)
    return failed("open");
  mapped_file out;
  out.path_ = path;
  struct stat about {};
  if (::fstat(descriptor, &about) != 0) {
    ::close(descriptor);
    return failed("read");
  }
  if (!S_ISREG(about.st_mode)) {
    ::close(descriptor);
    return fail(errc::io_failed, path.string() + ": not a regular file");
  }
  const auto size = static_cast<std::size_t>(about.st_size);
  if (size != 0) {
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) {
      ::close(descriptor);
      return failed("map");
    }
    // Tensors are read once, front to back. Only advice: a failure costs speed.
    ::posix_madvise(data, size, POSIX_MADV_SEQUENTIAL);
    out.bytes_ = {static_cast<const std::byte*>(data), size};
  }
  ::close(descriptor);
  return out;
}

mapped_file::mapped_file(mapped_file&& other) noexcept
  : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

mapped_file& mapped_file::operator=(mapped_file&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

mapped_file::~mapped_file() {
  if (!bytes_.empty())
    ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

// -- a directory --------------------------------------------------------------

result<checkpoint> checkpoint::open(const std::filesystem::path& directory) {
  checkpoint out;
  out.directory_ = directory;
  std::error_code failed;
  if (!std::filesystem::is_directory(directory, failed))
    return fail(errc::io_failed, directory.string() + ": not a directory");
  const auto single = directory / "model.safetensors";
  const auto index = directory / "model.safetensors.index.json";
  const auto added = is_there(single)  ? out.add_file(single)
                     : is_there(index) ? out.add_indexed(index)
                                       : out.add_all();
  if (!added)
    return fail(added);
  out.pair_scales();
  return out;
}

/// Every *.safetensors of the directory.
result<void> checkpoint::add_all() {
  const auto& directory = directory_;
  std::error_code failed;
  std::set<std::filesystem::path> found; // In name order, so that errors do not depend on the disk.
  bool pickled = false;
  // Not a range-for: its increment throws.
  for (std::filesystem::directory_iterator at(directory, failed), end; !failed && at != end;
       at.increment(failed)) {
    if (at->path().extension() == ".safetensors")
      found.insert(at->path());
    const auto name = at->path().filename().string();
    pickled = pickled || (name.starts_with("pytorch_model") && name.ends_with(".bin"));
  }
  if (failed)
    return fail(errc::io_failed, directory.string() + ": cannot list: " + failed.message());
  if (found.empty() && pickled)
    return fail(errc::bad_checkpoint, directory.string()
                                        + ": its weights are PyTorch's pickles (pytorch_model.bin),"
                                          " which are not read: python -m rollcast.convert "
                                        + directory.string() + " writes model.safetensors");
  if (found.empty())
    return fail(errc::bad_checkpoint, directory.string()
                                        + ": no weights; needed: model.safetensors, or "
                                          "model.safetensors.index.json with its shards, or other "
                                          "*.safetensors");
  for (const auto& path : found) {
    if (const auto added = add_file(path); !added)
      return added;
  }
  return {};
}

result<void> checkpoint::add_file(const std::filesystem::path& path) {
  auto file = mapped_file::open(path);
  if (!file)
    return fail(file);
  auto entries = parse_safetensors(file->bytes(), path.string());
  if (!entries)
    return fail(entries);
  files_.push_back(std::move(*file));
  for (auto& [name, entry] : *entries) {
    const auto [at, fresh] = tensors_.try_emplace(name);
    if (!fresh)
      return fail(errc::bad_checkpoint, path.string() + ": tensor " + printable(name)
                                          + " is also in "
                                          + files_[at->second.file].path().string());
    at->second = {std::move(entry), files_.size() - 1};
  }
  return {};
}

result<void> checkpoint::add_indexed(const std::filesystem::path& index) {
  const auto json = read_json_object(index, index_bytes_max, errc::bad_checkpoint);
  if (!json)
    return fail(json);
  const auto bad = [&](const std::string& what) {
    return fail(errc::bad_checkpoint, index.string() + ": " + what);
  };
  const auto map = json->find("weight_map");
  if (map == json->end() || !map->is_object())
    return bad("key \"weight_map\" is missing or not an object of tensor name to file");
  std::set<std::string> shards;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string())
      return bad("weight_map: the file of tensor " + printable(name) + " is not a string");
    const auto& shard = file.get_ref<const std::string&>();
    // A bare name, so that a downloaded index cannot make us open files elsewhere.
    if (shard.empty() || shard.find('/') != std::string::npos
        || shard.find('\0') != std::string::npos || !shard.ends_with(".safetensors"))
      return bad("weight_map: \"" + printable(shard)
                 + "\" is not the name of a *.safetensors file");
    shards.insert(shard);
  }
  if (shards.size() > shards_max)
    return bad("weight_map names " + std::to_string(shards.size()) + " files, at most "
               + std::to_string(shards_max) + " are accepted");
  for (const auto& shard : shards) {
    if (const auto added = add_file(directory_ / shard); !added)
      return fail(added);
  }
  for (const auto& [name, file] : map->items()) {
    const auto shard = directory_ / file.get_ref<const std::string&>();
    if (!contains(name) || files_[tensors_.find(name)->second.file].path() != shard)
      return bad("tensor " + printable(name) + " is not in " + shard.string()
                 + ", where weight_map says it is");
  }
  return {};
}

std::vector<std::string_view> checkpoint::names() const {
  std::vector<std::string_view> out;
  out.reserve(tensors_.size());
  for (const auto& [name, placed] : tensors_)
    out.push_back(name);
  return out;
}

std::string checkpoint::origin(std::string_view name) const {
  const auto at = tensors_.find(name);
  return (at == tensors_.end() ? directory_ : files_[at->second.file].path()).string();
}

/// Takes the scales of FP8 tensors out of the names: each is part of its tensor.
void checkpoint::pair_scales() {
  constexpr std::string_view ending = "_scale_inv";
  for (auto at = tensors_.begin(); at != tensors_.end();) {
    const std::string_view name = at->first;
    const auto of = name.ends_with(ending)
                      ? tensors_.find(name.substr(0, name.size() - ending.size()))
                      : tensors_.end();
    if (of == tensors_.end() || of->second.entry.dtype != "F8_E4M3") {
      ++at;
      continue;
    }
    scales_.emplace(of->first, std::move(at->second));
    at = tensors_.erase(at);
  }
}

result<kernels::dtype> checkpoint::type_of(std::string_view name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end())
    return fail(errc::bad_checkpoint,
                directory_.string() + ": tensor " + printable(name) + " is missing");
  const std::string& spelled = at->second.entry.dtype;
  if (spelled == "BF16" || scales_.contains(name))
    return kernels::dtype::bf16;
  if (spelled == "F16")
    return kernels::dtype::f16;
  if (spelled == "F32")
    return kernels::dtype::f32;
  return fail(errc::bad_checkpoint,
              origin(name) + ": tensor " + printable(name) + " has dtype " + printable(spelled, 20)
                + "; accepted: BF16, F16, F32"
                + (spelled == "F8_E4M3" ? ", and F8_E4M3 beside its weight_scale_inv" : ""));
}

result<std::span<const std::byte>> checkpoint::widened(const std::string& name,
                                                       const placed_tensor& placed) const {
  const auto& scale = scales_.find(name)->second;
  const auto& shape = placed.entry.shape;
  const auto blocks = [](std::size_t extent) { return (extent + fp8_block - 1) / fp8_block; };
  if (shape.size() != 2 || scale.entry.dtype != "F32"
      || scale.entry.shape != std::vector{blocks(shape[0]), blocks(shape[1])})
    return fail(errc::bad_checkpoint,
                origin(name) + ": tensor " + printable(name) + " is FP8 of " + shown(shape)
                  + ", its weight_scale_inv is " + printable(scale.entry.dtype, 20) + " of "
                  + shown(scale.entry.shape) + "; needed: F32, one for each 128 x 128 elements");
  const std::scoped_lock lock{widened_->mutex};
  const auto [at, fresh] = widened_->made.try_emplace(name);
  if (fresh)
    at->second = widen_fp8_blocks(bytes_of(placed), shape[0], shape[1], bytes_of(scale));
  return std::span<const std::byte>{at->second};
}

result<tensor_view> checkpoint::tensor(std::string_view name) const {
  const auto type = type_of(name);
  if (!type)
    return fail(type);
  const auto& [key, placed] = *tensors_.find(name);
  tensor_view out;
  out.name = name;
  out.shape = placed.entry.shape;
  out.type = *type;
  out.bytes = bytes_of(placed);
  if (scales_.contains(name)) {
    const auto wide = widened(key, placed);
    if (!wide)
      return fail(wide);
    out.bytes = *wide;
  }
  return out;
}

result<std::span<const std::byte>> checkpoint::list(std::string_view name,
                                                    std::string_view dtype) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end())
    return fail(errc::bad_checkpoint,
                directory_.string() + ": tensor " + printable(name) + " is missing");
  const auto& entry = at->second.entry;
  if (entry.dtype != dtype || entry.shape.size() != 1)
    return fail(errc::bad_checkpoint, origin(name) + ": tensor " + printable(name) + " is "
                                        + printable(entry.dtype, 20) + " of " + shown(entry.shape)
                                        + "; needed: " + std::string(dtype)
                                        + " with one dimension");
  return bytes_of(at->second);
}

void checkpoint::release(const tensor_view& tensor) const noexcept {
  if (scales_.contains(tensor.name))
    return; // not a part of a file
  // Whole pages inside of the tensor only; its neighbours may still be needed.
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(tensor.bytes.data());
  const auto begin = (first + page - 1) / page * page;
  const auto end = (first + tensor.bytes.size()) / page * page;
  if (begin < end)
    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

} // namespace rollcast
