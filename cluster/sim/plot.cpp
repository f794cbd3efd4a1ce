#include "cluster/sim/report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

namespace rollcast::sim {

namespace {

constexpr double left = 64, right = 28, top = 44, bottom = 40, width = left + 880 + right;
constexpr int columns = 880; // one a pixel: what is finer cannot be seen

std::string number(double x) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.5g", x);
  return text.data();
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text)
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  return out;
}

std::string label(double x, double y, const std::string& anchor, const std::string& text) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\">"
         + escaped(text) + "</text>\n";
}

/// Mean number running in each column of time.
std::vector<double> sampled(const std::vector<timeline_point>& line, double makespan) {
  std::vector<double> out(columns);
  for (std::size_t i = 0; i < line.size(); ++i) {
    const double from = line[i].at_s / makespan * columns;
    const double to =
      std::min<double>(columns, (i + 1 < line.size() ? line[i + 1].at_s / makespan : 1) * columns);
    for (int c = static_cast<int>(from); c < columns && c < to; ++c)
      out[static_cast<std::size_t>(c)] +=
        line[i].running * std::max(0.0, std::min<double>(c + 1, to) - std::max<double>(c, from));
  }
  return out;
}

std::string band(const std::vector<double>& samples, double most, double base, double height) {
  std::string path = "M" + number(left) + " " + number(base);
  for (std::size_t c = 0; c < samples.size(); ++c) {
    const double y = base - samples[c] / most * height;
    path += "L" + number(left + static_cast<double>(c)) + " " + number(y);
  }
  path += "L" + number(left + columns) + " " + number(base) + "Z";
  return "<path d=\"" + path + "\" fill=\"#4878a8\" stroke=\"none\"/>\n";
}

std::string time_axis(double makespan, double y) {
  std::string out;
  for (int i = 0; i <= 5; ++i) {
    const double x = left + columns * i / 5.0;
    out += label(x, y + 16, "middle", number(makespan * i / 5));
  }
  return out + label(left + columns / 2.0, y + 32, "middle", "seconds");
}

} // namespace

std::string plot_svg(const sim_result& run, const std::string& title) {
  const auto workers = run.timeline.size();
  const double row =
    std::clamp(640.0 / static_cast<double>(std::max<std::size_t>(1, workers)), 14.0, 72.0);
  const double height = top + row * static_cast<double>(workers) + bottom;
  double most = 1;
  std::vector<std::vector<double>> bands;
  for (const auto& line : run.timeline) {
    bands.push_back(sampled(line, run.makespan_s));
    most = std::max(most, *std::max_element(bands.back().begin(), bands.back().end()));
  }
  const double tail_at = left + (1 - run.tail_s / run.makespan_s) * columns;
  const double end = top + row * static_cast<double>(workers);
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(width)
                    + "\" height=\"" + number(height) + "\" viewBox=\"0 0 " + number(width) + " "
                    + number(height)
                    + "\" font-family=\"sans-serif\" font-size=\"11\">\n"
                      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  out += "<rect x=\"" + number(tail_at) + "\" y=\"" + number(top) + "\" width=\""
         + number(left + columns - tail_at) + "\" height=\"" + number(end - top)
         + "\" fill=\"#f6dcc8\"/>\n";
  out += label(left, 16, "start", title);
  out += label(left, 32, "start",
               "running responses by worker; full height is " + number(most)
                 + "; shaded: the last tenth of the responses (" + number(run.tail_s) + " s)");
  for (std::size_t w = 0; w < workers; ++w) {
    const double base = top + row * static_cast<double>(w + 1);
    out += band(bands[w], most, base, row - 2);
    out += "<line x1=\"" + number(left) + "\" y1=\"" + number(base) + "\" x2=\""
           + number(left + columns) + "\" y2=\"" + number(base)
           + "\" stroke=\"#999\" stroke-width=\"0.5\"/>\n";
    out += label(left - 6, base - 3, "end", std::to_string(w + 1));
  }
  return out + time_axis(run.makespan_s, end) + "</svg>\n";
}

} // namespace rollcast::sim
