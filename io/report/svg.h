// What the plots share: escaped text, round ticks, colours, and elements appended to a string.
//
// Plots have a viewBox and no size of their own, so that they take the width they are given. They are drawn about 420 units
// wide with text of 13 to 14 units: on a phone, at four fifths of that, they are still read without zooming.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pm::io::svg {

// Safe inside XML and HTML, as text and as a quoted attribute. What is no UTF-8, or no character of XML, becomes U+FFFD.
std::string escape(std::string_view text);
// At most `most` characters, the last one an ellipsis when some were left out.
std::string shorten(std::string_view text, size_t most);
size_t count_characters(std::string_view text);
// A coordinate: two digits after the point at most.
std::string num(double value);

// Colours after Okabe and Ito, told apart by colour-blind readers too; dashes when they are used up.
struct Ink {
  const char* line;
  const char* text;  // a darker twin, for letters on white
  const char* dash;  // stroke-dasharray, "none" for the first eight
};
Ink ink(size_t index);
constexpr const char* kText = "#1f2328";
constexpr const char* kQuietText = "#59636e";
constexpr const char* kAxis = "#8c959f";
constexpr const char* kGrid = "#e6e8eb";

// Multiples of 1, 2 or 5 times a power of ten, at most `most` intervals apart.
double round_step(double range, int most);
// The multiples of `step` from the last one at or below `low` to the first one at or above `high`.
std::vector<double> ticks_around(double low, double high, double step);
// The multiples of `step` within low..high.
std::vector<double> ticks_within(double low, double high, double step);
// With as many digits as `step` needs: 0.25 -> "0.50".
std::string tick_label(double value, double step);

// Places for labels: near where they are wanted, in the same order, `gap` apart, within low..high.
std::vector<double> spread(const std::vector<double>& wanted, double gap, double low, double high);

// Linear map from data to units.
struct Scale {
  double data_low = 0.0, data_high = 1.0, unit_low = 0.0, unit_high = 1.0;
  double operator()(double value) const {
    return unit_low + (value - data_low) / (data_high - data_low) * (unit_high - unit_low);
  }
};

class Canvas {
 public:
  // `attributes` is markup: ` fill="none"`.
  void line(double x1, double y1, double x2, double y2, std::string_view attributes);
  void text(double x, double y, std::string_view content, std::string_view attributes = "");
  void path(std::string_view commands, std::string_view attributes);
  void add(std::string_view markup) { body_ += markup; }
  const std::string& body() const { return body_; }
  // The whole picture. `title` and `description` are read out by screen readers.
  std::string finish(double width, double height, std::string_view title, std::string_view description) const;

 private:
  std::string body_;
};

}  // namespace pm::io::svg
