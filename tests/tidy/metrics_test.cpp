// Goal: dashboards/metrics.md lists exactly the series that the code exports.
// Method: make the metrics of every role, read the exported text back into name -> (type, labels),
// read the table of metrics.md into the same shape, and compare.

#include "cluster/telemetry/metrics.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>

namespace rollcast {
namespace {

/// What the outside can see of a metric. A label's values are empty where they are open-ended.
struct metric_shape {
  std::string type;
  std::map<std::string, std::set<std::string>> labels;
  friend bool operator==(const metric_shape&, const metric_shape&) = default;
  friend std::ostream& operator<<(std::ostream& out, const metric_shape& x) {
    out << x.type;
    for (const auto& [label, values] : x.labels) {
      out << ' ' << label << ':';
      for (const auto& value : values)
        out << value << ',';
    }
    return out;
  }
};
using metric_map = std::map<std::string, metric_shape>;

/// The labels whose values no table can list.
const std::set<std::string> open_labels{"version", "numerics_profile"};

metric_map read_exported(const std::string& text) {
  const std::regex type_line{"# TYPE (\\S+) (\\S+)"};
  const std::regex label_pair{"([a-z_]+)=\"([^\"]*)\""};
  metric_map found;
  metric_shape* current = nullptr;
  std::istringstream lines{text};
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_match(line, match, type_line)) {
      current = &found[match[1]];
      current->type = match[2];
    } else if (!line.starts_with('#') && current != nullptr) {
      for (std::sregex_iterator it{line.begin(), line.end(), label_pair}, end; it != end; ++it)
        if (const auto label = (*it)[1].str(); label != "le") {
          auto& values = current->labels[label];
          if (!open_labels.contains(label))
            values.insert((*it)[2]);
        }
    }
  }
  return found;
}

/// Reads the rows that hold for `role` from a table in the form of metrics.md.
metric_map read_table(std::istream& in, const std::string& role) {
  const std::regex row{R"(\| `(rollcast_\w+)` \| (\w+) \|[^|]*\| ?([^|]*)\| (\w+) \|.*)"};
  const std::regex quoted{"`([a-z_]+)`"};
  metric_map found;
  std::smatch match;
  for (std::string line; std::getline(in, line);) {
    if (!std::regex_match(line, match, row))
      continue;
    const bool both = match[4] == "both" && (role == "scheduler" || role == "worker");
    if (match[4] != role && match[4] != "all" && !both)
      continue;
    auto& metric = found[match[1]];
    metric.type = match[2];
    // `label`: `value`, `value`   or   `label`, `label`
    const auto cell = match[3].str();
    const auto colon = cell.find(':');
    std::string label;
    for (std::sregex_iterator it{cell.begin(), cell.end(), quoted}, end; it != end; ++it) {
      if (colon == std::string::npos || static_cast<std::size_t>(it->position()) < colon)
        metric.labels[label = (*it)[1]];
      else
        metric.labels[label].insert((*it)[1]);
    }
  }
  return found;
}

metric_map read_table(const std::string& role) {
  std::ifstream in{ROLLCAST_SOURCE_DIR "/dashboards/metrics.md"};
  EXPECT_TRUE(in) << "dashboards/metrics.md cannot be read";
  return read_table(in, role);
}

void expect_same(const metric_map& exported, const metric_map& documented) {
  for (const auto& [name, shape] : exported) {
    const auto it = documented.find(name);
    if (it == documented.end())
      ADD_FAILURE() << name << " is exported and not in dashboards/metrics.md for this role";
    else
      EXPECT_EQ(shape, it->second) << name << ": code first, dashboards/metrics.md second";
  }
  for (const auto& [name, shape] : documented)
    EXPECT_TRUE(exported.contains(name)) << name << " is in dashboards/metrics.md, not in the code";
  EXPECT_GE(exported.size(), 7u) << "the reader of the text found too little";
}

TEST(metrics_doc, lists_what_a_scheduler_exports) {
  expect_same(read_exported(scheduler_metrics{"x", "y"}.registry.text()), read_table("scheduler"));
}

TEST(metrics_doc, lists_what_a_worker_exports) {
  expect_same(read_exported(worker_metrics{"x", "y"}.registry.text()), read_table("worker"));
}

TEST(metrics_doc, lists_what_a_draft_server_exports) {
  expect_same(read_exported(draft_server_metrics{"x"}.registry.text()), read_table("draft_server"));
}

/// What a query may call a metric: histograms have three series.
bool is_listed(std::string name, const std::string& listed) {
  for (const std::string suffix : {"_bucket", "_sum", "_count"})
    if (name.ends_with(suffix) && listed.find("`" + name + "`") == std::string::npos)
      name.resize(name.size() - suffix.size());
  return listed.find("| `" + name + "` |") != std::string::npos;
}

TEST(metrics_doc, panels_ask_only_for_what_is_listed) {
  std::ifstream in{ROLLCAST_SOURCE_DIR "/dashboards/metrics.md"};
  const std::string listed{std::istreambuf_iterator<char>{in}, {}};
  int names = 0;
  for (const auto& entry : std::filesystem::directory_iterator{ROLLCAST_SOURCE_DIR "/dashboards"}) {
    if (entry.path().extension() != ".json")
      continue;
    std::ifstream file{entry.path()};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    const std::regex name{"rollcast_\\w+"};
    for (std::sregex_iterator it{text.begin(), text.end(), name}, end; it != end; ++it, ++names)
      EXPECT_TRUE(is_listed(it->str(), listed)) << it->str() << " in " << entry.path();
  }
  EXPECT_GT(names, 10);
}

TEST(metrics_doc, readers_see_what_they_must) {
  const auto exported = read_exported("# HELP rollcast_a_total A\n"
                                      "# TYPE rollcast_a_total counter\n"
                                      "rollcast_a_total{reason=\"x\"} 1\n"
                                      "rollcast_a_total{reason=\"y\"} 0\n");
  std::istringstream table{
    "| `rollcast_a_total` | counter | things | `reason`: `x`, `y` | both | Text. | someone |\n"
    "| `rollcast_b` | gauge | | | worker | Text. | someone |\n"};
  EXPECT_EQ(exported, read_table(table, "scheduler"));
  EXPECT_EQ(exported.at("rollcast_a_total").labels.at("reason"), (std::set<std::string>{"x", "y"}));
}

} // namespace
} // namespace rollcast
