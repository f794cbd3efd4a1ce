// Goal: no config file crashes the command line, and what it says becomes options and nothing else.
// Method: the input is the file of --config, read for a root with two commands.

#include "cli/config_file.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <CLI/CLI.hpp>

namespace rollcast::fuzz {
namespace {

/// A root like the real one: what values are allowed is not asked here.
class commands {
public:
  commands() {
    for (auto* app : {root_.add_subcommand("worker"), root_.add_subcommand("scheduler")}) {
      for (const auto* flag : {"--config", "--model", "--threads", "--name", "--listen"})
        app->add_option(flag);
      app->add_flag("--no-metrics");
    }
  }
  const CLI::App& root() const noexcept { return root_; }

private:
  CLI::App root_;
};

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  static const fuzz::commands known;
  const auto path = fuzz::write_scratch("rollcast.toml", fuzz::text_of(data, size));
  const std::vector<std::string> given{"worker", "--config", path.string(), "--threads=2"};
  const auto arguments = cli::with_config_file(known.root(), given);
  if (!arguments) {
    fuzz::check_refusal(arguments.error());
    return 0;
  }
  fuzz::require(arguments->size() >= given.size(), "what was given stays");
  for (std::size_t i = given.size(); i < arguments->size(); ++i) {
    const auto& added = (*arguments)[i];
    fuzz::require(added.starts_with("--") && added.find('=') != std::string::npos,
                  "a file adds options with values");
    fuzz::require(!added.starts_with("--threads="), "the command line wins");
  }
  return 0;
}
