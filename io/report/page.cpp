#include "io/report/page.h"

#include <fmt/format.h>

#include <cmath>

namespace pm::io::page {

const std::string_view kStyle = R"(
:root{color-scheme:light;--ink:#1f2328;--quiet:#59636e;--line:#d8dee4;--soft:#f6f8fa;--link:#00609a;--warn:#8a4a00}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:68rem;margin:0 auto;padding:2.75rem 1.5rem 4rem}
h1{font-size:clamp(1.5rem,1.1rem + 1.8vw,2.1rem);line-height:1.2;margin:0 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.2rem;line-height:1.3;margin:3rem 0 .9rem;padding-top:1.1rem;border-top:1px solid var(--line)}
p{margin:0 0 .8rem;max-width:44rem}
a{color:var(--link)}
.verdict{font-size:clamp(1.05rem,1rem + .4vw,1.2rem);line-height:1.5}
.quiet,figcaption{color:var(--quiet);font-size:.9rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:1.4rem 0 0;font-size:.9rem}
nav a{text-decoration:none}
nav a:hover,nav a:focus{text-decoration:underline}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,10.5rem),1fr));gap:1.1rem 1.5rem;margin:1.6rem 0 0;padding:1.1rem 0 0;border-top:1px solid var(--line)}
.figures dt{color:var(--quiet);font-size:.85rem}
.figures dd{margin:0;font-size:1.35rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.figures dd small{display:block;font-size:.8rem;font-weight:400;color:var(--quiet)}
.warnings{margin:1.6rem 0 0;padding:.8rem 1rem .8rem 2.1rem;background:#fff8ec;border-left:4px solid #e69f00}
.scroll{overflow-x:auto;background:linear-gradient(to right,#fff 40%,transparent) left/2.5rem 100%,linear-gradient(to left,#fff 40%,transparent) right/2.5rem 100%,linear-gradient(to right,rgba(31,35,40,.16),transparent) left/.7rem 100%,linear-gradient(to left,rgba(31,35,40,.16),transparent) right/.7rem 100%;background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.45rem .9rem .45rem 0;text-align:right;vertical-align:baseline;border-bottom:1px solid #eaeef2;white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
th{font-weight:600}
thead th{color:var(--quiet);font-size:.85rem;line-height:1.3;white-space:normal;border-bottom-color:var(--line);vertical-align:bottom}
th:first-child,td:first-child,.left{text-align:left}
tfoot th,tfoot td{border-bottom:0;font-weight:600}
tfoot tr:first-child th,tfoot tr:first-child td{border-top:1px solid #8c959f}
.issues{list-style:none;margin:0;padding:0;font-size:.93rem;border-top:1px solid var(--line)}
.issues li{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:.1rem 1rem;padding:.6rem 0;border-bottom:1px solid #eaeef2}
.issues div{grid-column:1/-1}
.remarks{margin:.8rem 0 0;padding-left:1.2rem}
.state::before{content:"";display:inline-block;width:.6em;height:.6em;margin-right:.45em;border-radius:50%;border:1.5px solid #8c959f}
.done::before{background:#009e73;border-color:#009e73}
.running::before{border-color:#0072b2;background:linear-gradient(90deg,#0072b2 50%,#fff 50%)}
.stopped::before{border-color:#b07a00;background:#e69f00;border-radius:0}
.failed::before{border-color:#b04a00;background:#b04a00;border-radius:0;transform:rotate(45deg)}
figure{margin:0}
figure svg{display:block;width:100%;height:auto}
figcaption p{margin:0 0 .6rem}
.beside{display:grid;gap:1rem 2.5rem}
.beside svg{max-width:36rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1.6rem 2rem}
.key{display:inline-block;width:1.4em;height:0;border-top:3px solid;vertical-align:.28em;margin-right:.45em}
.slides{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,13.5rem),1fr));gap:1.6rem 1.4rem;list-style:none;margin:0;padding:0}
.slides img,.slides .none{display:flex;align-items:center;justify-content:center;width:100%;height:11rem;object-fit:contain;background:var(--soft);border:1px solid var(--line);color:var(--quiet);font-size:.85rem}
.slides b{display:block;margin:.5rem 0 .1rem;line-height:1.35}
.slides span{display:block;font-size:.88rem;line-height:1.45}
.pairs{display:grid;grid-template-columns:minmax(6rem,max-content) minmax(0,1fr);gap:.3rem 1.4rem;margin:0;font-size:.93rem}
.pairs dt{color:var(--quiet)}
.pairs dd{margin:0;font-variant-numeric:tabular-nums}
code span{display:inline-block;max-width:100%}
pre{margin:0 0 1.2rem;padding:.8rem 1rem;background:var(--soft);border:1px solid var(--line);font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap}
@media(min-width:56rem){.beside{grid-template-columns:minmax(0,36rem) minmax(0,1fr)}.beside figcaption{padding-top:2.2rem}.issues li{grid-template-columns:14rem 5rem minmax(0,1fr);gap:.1rem 1.5rem}.issues div{grid-column:auto}.pairs.two{grid-template-columns:repeat(2,minmax(6rem,max-content) minmax(0,1fr))}}
@media(max-width:30rem){main{padding:1.6rem 1rem 3rem}.slides{grid-template-columns:repeat(2,minmax(0,1fr))}.slides img,.slides .none{height:8.5rem}.figures{grid-template-columns:repeat(2,minmax(0,1fr))}.figures dd{font-size:1.2rem}h2{margin-top:2.2rem}}
@media print{main{max-width:none;padding:0}nav{display:none}figure,.slides li,.issues li,tr{break-inside:avoid}.scroll{overflow:visible}}
)";

std::optional<double> value_of(const ReportFold& fold, size_t metric) {
  if (metric >= fold.metrics.size() || !fold.metrics[metric] || !std::isfinite(*fold.metrics[metric]))
    return std::nullopt;
  return fold.metrics[metric];
}

metrics::Summary summarize(const RunReport& report, size_t metric) {
  std::vector<double> values;
  for (const ReportFold& fold : report.folds) {
    if (const auto value = value_of(fold, metric); value && fold.state == FoldState::done) values.push_back(*value);
  }
  return metrics::summarise(values);
}

std::string mean_and_deviation(const metrics::Summary& summary) {
  if (summary.n == 0) return "–";
  if (summary.n == 1) return fmt::format("{:.3f}", summary.mean);
  return fmt::format("{:.3f} ± {:.3f}", summary.mean, summary.deviation);
}

std::string interval_text(const ReportMetric& metric) {
  if (!metric.ci_low || !metric.ci_high) return "";
  return fmt::format("{:.3f} to {:.3f}", *metric.ci_low, *metric.ci_high);
}

std::string capitalized(std::string_view text) {
  std::string out(text);
  if (!out.empty() && out[0] >= 'a' && out[0] <= 'z') out[0] = static_cast<char>(out[0] - 'a' + 'A');
  return out;
}

std::string verdict(const RunReport& report) {
  if (!report.verdict.empty()) return report.verdict;
  int64_t done = 0, failed = 0;
  for (const ReportFold& fold : report.folds) {
    done += fold.state == FoldState::done ? 1 : 0;
    failed += fold.state == FoldState::failed ? 1 : 0;
  }
  const auto all = static_cast<int64_t>(report.folds.size());
  std::string text;
  if (!report.metrics.empty()) {
    const ReportMetric& metric = report.metrics[0];
    const metrics::Summary summary = summarize(report, 0);
    if (summary.n > 1) {
      text = fmt::format("{} {} (mean ± standard deviation of {} folds). ", capitalized(metric.name),
                         mean_and_deviation(summary), summary.n);
    } else if (summary.n == 1) {
      text = fmt::format("{} {:.3f} on held-out cases of one fold. ", capitalized(metric.name), summary.mean);
    } else if (metric.pooled) {
      text = fmt::format("{} {:.3f} on held-out cases. ", capitalized(metric.name), *metric.pooled);
    }
    if (metric.pooled && metric.chance && metric.ci_low && metric.ci_high) {
      const char* relation =
          *metric.ci_low > *metric.chance ? "Better than chance: the" : "Not told apart from chance: the";
      const char* place = *metric.ci_low > *metric.chance ? "lies above" : "includes";
      if (*metric.ci_high < *metric.chance) {
        relation = "Worse than chance: the";
        place = "lies below";
      }
      text += fmt::format("{} 95 % interval over held-out cases, {}, {} {:.3g}. ", relation, interval_text(metric),
                          place, *metric.chance);
    }
  }
  if (text.empty()) text = "No held-out result yet. ";
  if (done < all) text += fmt::format("{} of {} folds {} done. ", done, all, done == 1 ? "is" : "are");
  if (failed > 0) text += fmt::format("{} fold{} failed. ", failed, failed == 1 ? "" : "s");
  text.pop_back();
  return text;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t block = 0;
    for (size_t j = 0; j < 3; ++j) block = block << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) out += i + j <= bytes.size() ? kDigits[block >> (18 - 6 * j) & 0x3F] : '=';
  }
  return out;
}

}  // namespace pm::io::page
