#include "tests/tidy/rules.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

namespace rollcast::tidy {

namespace {

namespace fs = std::filesystem;

/// Not ours to judge: build outputs, caches, what is laid beside the sources.
bool is_skipped(const fs::path& folder, bool top) {
  static const std::set<std::string> anywhere{"__pycache__", "venv", "node_modules", "Testing"};
  const auto name = folder.filename().string();
  if (name.starts_with('.'))
    return name != ".ci";
  return anywhere.contains(name) || name.ends_with(".egg-info")
         || (top && (name.starts_with("build") || name == "shared"));
}

std::string read(const fs::path& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

std::vector<fs::path> folders_in(const fs::path& parent, bool top) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(parent))
    if (entry.is_directory() && !entry.is_symlink() && !is_skipped(entry.path(), top)
        && !entry.path().filename().string().starts_with('.'))
      found.push_back(entry.path());
  std::ranges::sort(found);
  return found;
}

bool holds_files(const fs::path& folder) {
  return std::ranges::any_of(fs::recursive_directory_iterator(folder),
                             [](const auto& entry) { return entry.is_regular_file(); });
}

} // namespace

findings check_readmes(const std::string& root) {
  static const std::set<std::string> code{"kernels", "engine", "cluster", "actors", "cli"};
  findings found;
  const auto front = read(fs::path{root} / "README.md");
  for (const auto& folder : folders_in(root, true)) {
    const auto name = folder.filename().string();
    if (!holds_files(folder))
      continue;
    if (front.find(name + "/") == std::string::npos)
      found.push_back("README.md:1: the folder table does not name " + name + "/");
    const auto readme = read(folder / "README.md");
    if (readme.empty())
      found.push_back(name + "/README.md:1: missing; it is the contract of " + name + "/");
    else if (code.contains(name))
      for (const auto& below : folders_in(folder, false))
        if (const auto inner = below.filename().string() + "/";
            holds_files(below) && readme.find(inner) == std::string::npos)
          found.push_back(name + "/README.md:1: does not say what " + inner + " is");
  }
  return found;
}

std::vector<std::string> files_below(const std::string& root) {
  std::vector<std::string> found;
  const auto end = fs::recursive_directory_iterator{};
  for (auto it = fs::recursive_directory_iterator(root); it != end; ++it) {
    if (it->is_directory() && is_skipped(it->path(), it.depth() == 0))
      it.disable_recursion_pending();
    else if (it->is_regular_file() && !it->is_symlink())
      if (auto path = fs::relative(it->path(), root).generic_string(); is_checked(path))
        found.push_back(std::move(path));
  }
  std::ranges::sort(found);
  return found;
}

} // namespace rollcast::tidy
