// Goal: figures are averaged with their spread, and a plot is one well-formed SVG.
// Method: small numbers by hand; a small reader of tags below.

#include "cluster/sim/report.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace rollcast::sim {
namespace {

TEST(mean_figures, gives_mean_and_spread) {
  const std::vector<nlohmann::ordered_json> runs{{{"tail_s", 1.0}}, {{"tail_s", 4.0}}};
  const auto seen = mean_figures(runs);
  EXPECT_DOUBLE_EQ(seen["tail_s"].get<double>(), 2.5);
  EXPECT_DOUBLE_EQ(seen["spread"]["tail_s"]["min"].get<double>(), 1);
  EXPECT_DOUBLE_EQ(seen["spread"]["tail_s"]["max"].get<double>(), 4);
  EXPECT_NEAR(seen["spread"]["tail_s"]["stdev"].get<double>(), std::sqrt(4.5), 1e-12);
  EXPECT_FALSE(mean_figures({runs[0]}).contains("spread"));
}

/// Whether tags nest, one root holds all, and text has no bare special.
bool well_formed(const std::string& xml) {
  std::vector<std::string> open;
  std::size_t roots = 0;
  for (std::size_t i = 0; i < xml.size(); ++i) {
    if (xml[i] == '&' && xml.compare(i, 4, "&lt;") != 0 && xml.compare(i, 4, "&gt;") != 0
        && xml.compare(i, 5, "&amp;") != 0 && xml.compare(i, 6, "&quot;") != 0)
      return false;
    if (xml[i] != '<')
      continue;
    const auto end = xml.find('>', i);
    if (end == std::string::npos)
      return false;
    const auto tag = xml.substr(i + 1, end - i - 1);
    if (tag.find('<') != std::string::npos)
      return false;
    const auto name = tag.substr(tag[0] == '/', tag.find_first_of(" />", 1) - (tag[0] == '/'));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != name)
        return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      roots += open.empty();
      open.push_back(name);
    }
    i = end;
  }
  return open.empty() && roots == 1;
}

TEST(plot_svg, is_one_well_formed_document_with_a_band_a_worker) {
  sim_result run;
  run.makespan_s = 10;
  run.tail_s = 2;
  run.timeline = {{{0, 4}, {5, 2}, {10, 0}}, {{1, 1}, {3, 0}}, {}};
  const auto svg = plot_svg(run, "a < b & \"c\"");
  EXPECT_TRUE(well_formed(svg));
  std::size_t bands = 0;
  for (auto at = svg.find("<path"); at != std::string::npos; at = svg.find("<path", at + 1))
    ++bands;
  EXPECT_EQ(bands, 3u);
  EXPECT_NE(svg.find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_FALSE(well_formed("<svg><g></svg>"));
}

} // namespace
} // namespace rollcast::sim
