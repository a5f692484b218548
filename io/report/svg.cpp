#include "io/report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace pm::io::svg {
namespace {

// Bytes of the UTF-8 character at the start of `text`, 0 when there is none: cut off, overlong, a surrogate, out of range.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t bytes = first >= 0xC2 && first < 0xE0   ? 2
                       : first >= 0xE0 && first < 0xF0 ? 3
                       : first >= 0xF0 && first < 0xF5 ? 4
                                                       : 0;
  if (bytes == 0 || bytes > text.size()) return 0;
  uint32_t code = first & (0x7F >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3F);
  }
  constexpr std::array<uint32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  const bool valid =
      code >= kLeast[bytes] && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF) && code != 0xFFFE && code != 0xFFFF;
  return valid ? bytes : 0;
}

}  // namespace

std::string escape(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  while (!text.empty()) {
    const size_t bytes = character_bytes(text);
    const char c = text.front();
    if (bytes == 0 || c == 0x7F || (bytes == 1 && static_cast<uint8_t>(c) < 0x20 && c != '\n' && c != '\t')) {
      out += kReplacement;
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(0, bytes);
    }
    text.remove_prefix(std::max<size_t>(bytes, 1));
  }
  return out;
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (; !text.empty(); ++count) text.remove_prefix(std::max<size_t>(character_bytes(text), 1));
  return count;
}

std::string shorten(std::string_view text, size_t most) {
  if (count_characters(text) <= most) return std::string(text);
  std::string out;
  for (size_t count = 0; count + 1 < most; ++count) {
    const size_t bytes = std::max<size_t>(character_bytes(text), 1);
    out += text.substr(0, bytes);
    text.remove_prefix(bytes);
  }
  return out + "…";
}

std::string num(double value) {
  std::string text = fmt::format("{:.2f}", value);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

Ink ink(size_t index) {
  constexpr std::array<Ink, 8> kInks = {{{"#0072b2", "#00609a", "none"},
                                         {"#d55e00", "#b04a00", "none"},
                                         {"#009e73", "#00724f", "none"},
                                         {"#cc79a7", "#9a4776", "none"},
                                         {"#e69f00", "#8a5d00", "none"},
                                         {"#56b4e9", "#1c6c9e", "none"},
                                         {"#4d4d4d", "#3a3a3a", "none"},
                                         {"#8c6bb1", "#6a4a94", "none"}}};
  constexpr std::array<const char*, 4> kDashes = {"none", "6 3", "2 3", "8 3 2 3"};
  Ink ink = kInks[index % kInks.size()];
  ink.dash = kDashes[index / kInks.size() % kDashes.size()];
  return ink;
}

double round_step(double range, int most) {
  if (!(range > 0.0) || !std::isfinite(range)) return 1.0;
  const double least = range / most;
  const double power = std::pow(10.0, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= least * (1.0 - 1e-9)) return factor * power;
  }
  return 10.0 * power;
}

std::vector<double> ticks_around(double low, double high, double step) {
  const auto first = static_cast<int64_t>(std::floor(low / step + 1e-9));
  const auto last = std::max(first + 1, static_cast<int64_t>(std::ceil(high / step - 1e-9)));
  std::vector<double> ticks;
  for (int64_t i = first; i <= last; ++i) ticks.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::vector<double> ticks_within(double low, double high, double step) {
  std::vector<double> ticks;
  const auto last = static_cast<int64_t>(std::floor(high / step + 1e-9));
  for (auto i = static_cast<int64_t>(std::ceil(low / step - 1e-9)); i <= last; ++i)
    ticks.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::string tick_label(double value, double step) {
  const int digits = std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 12);
  std::string text = fmt::format("{:.{}f}", value == 0.0 ? 0.0 : value, digits);
  if (text.front() == '-') text.replace(0, 1, "−");
  return text;
}

std::vector<double> spread(const std::vector<double>& wanted, double gap, double low, double high) {
  std::vector<size_t> order(wanted.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return wanted[a] < wanted[b]; });
  // Neighbours that are too close form a block, centred on the mean of what its members want; blocks that touch are joined.
  struct Block {
    double sum = 0.0;  // of the places wanted for the block's first label
    double count = 0.0;
    double start(double gap, double low, double high) const {
      return std::max(low, std::min(sum / count, high - (count - 1.0) * gap));
    }
  };
  std::vector<Block> blocks;
  for (const size_t i : order) {
    Block block{wanted[i], 1.0};
    while (!blocks.empty() &&
           blocks.back().start(gap, low, high) + blocks.back().count * gap > block.start(gap, low, high)) {
      const Block& before = blocks.back();
      block = {before.sum + block.sum - block.count * before.count * gap, before.count + block.count};
      blocks.pop_back();
    }
    blocks.push_back(block);
  }
  std::vector<double> places(wanted.size());
  size_t next = 0;
  for (const Block& block : blocks) {
    double place = block.start(gap, low, high);
    for (int64_t i = 0; i < static_cast<int64_t>(block.count); ++i, place += gap) places[order[next++]] = place;
  }
  return places;
}

void Canvas::line(double x1, double y1, double x2, double y2, std::string_view attributes) {
  body_ += fmt::format(R"(<line x1="{}" y1="{}" x2="{}" y2="{}"{}/>)", num(x1), num(y1), num(x2), num(y2), attributes);
}

void Canvas::text(double x, double y, std::string_view content, std::string_view attributes) {
  body_ += fmt::format(R"(<text x="{}" y="{}"{}>{}</text>)", num(x), num(y), attributes, escape(content));
}

void Canvas::path(std::string_view commands, std::string_view attributes) {
  body_ += fmt::format(R"(<path d="{}"{}/>)", commands, attributes);
}

std::string Canvas::finish(double width, double height, std::string_view title, std::string_view description) const {
  return fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" role="img" font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif" font-size="13" fill="{2}"><title>{3}</title><desc>{4}</desc><rect width="{0}" height="{1}" fill="#fff"/>{5}</svg>)",
      num(width), num(height), kText, escape(title), escape(description), body_);
}

}  // namespace pm::io::svg
