#include "io/report/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "io/data/atomic_file.h"
#include "io/report/page.h"
#include "io/report/plots.h"
#include "io/report/svg.h"

namespace pm::io {
namespace {

using svg::escape;

std::string optional_number(const std::optional<int64_t>& value) { return value ? std::to_string(*value) : "–"; }

const char* state_name(FoldState state) {
  switch (state) {
    case FoldState::waiting:
      return "waiting";
    case FoldState::running:
      return "running";
    case FoldState::done:
      return "done";
    case FoldState::stopped:
      return "stopped";
    case FoldState::failed:
      return "failed";
  }
  return "";
}

std::string key_figure(std::string_view name, std::string_view value, std::string_view remark) {
  return fmt::format("<div><dt>{}</dt><dd>{}{}</dd></div>\n", escape(name), escape(value),
                     remark.empty() ? "" : "<small>" + escape(remark) + "</small>");
}

std::string key_figures(const RunReport& report) {
  std::string out;
  for (size_t i = 0; i < report.metrics.size(); ++i) {
    const ReportMetric& metric = report.metrics[i];
    const metrics::Summary summary = page::summarize(report, i);
    const std::string name = page::capitalized(metric.name);
    if (summary.n > 1) {
      out += key_figure(name, page::mean_and_deviation(summary), fmt::format("{} folds", summary.n));
    } else if (summary.n == 1) {
      out += key_figure(name, page::mean_and_deviation(summary), "one fold");
    } else if (metric.pooled) {
      out += key_figure(name, fmt::format("{:.3f}", *metric.pooled), "held-out cases together");
    }
  }
  if (report.kaplan_meier && report.kaplan_meier->p) {
    out += key_figure("Log-rank, risk groups", p_value(*report.kaplan_meier->p), "");
  }
  if (report.cohort && !report.cohort->rows.empty()) {
    const AuditRow& whole = report.cohort->rows.front();
    std::string remark = fmt::format("{} slides", whole.slides);
    if (whole.events) remark += fmt::format(", {} events", *whole.events);
    out += key_figure("Cases", std::to_string(whole.cases), remark);
  }
  return out.empty() ? "" : "<dl class=\"figures\">\n" + out + "</dl>\n";
}

// A table in a box of its own that scrolls, so that the page never does.
std::string table_start(const char* name) {
  return fmt::format("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table>\n", name);
}

std::string heading(const char* id, const char* title) { return fmt::format("<h2 id=\"{}\">{}</h2>\n", id, title); }

// Counts of cases in the fold table, where a fold has them.
struct CountColumn {
  const char* name;
  std::optional<int64_t> ReportFold::*member;
};

std::vector<CountColumn> count_columns(const RunReport& report) {
  std::vector<CountColumn> columns;
  for (const CountColumn& column : {CountColumn{"Training cases", &ReportFold::train_cases},
                                    CountColumn{"Held-out cases", &ReportFold::validation_cases},
                                    CountColumn{"Held-out events", &ReportFold::validation_events}}) {
    if (std::any_of(report.folds.begin(), report.folds.end(),
                    [&](const ReportFold& fold) { return fold.*column.member; })) {
      columns.push_back(column);
    }
  }
  return columns;
}

// Below the folds: a line of one value per metric; nothing when no metric has it.
std::string foot_row(const RunReport& report, const char* name, size_t counts,
                     const std::function<std::string(size_t)>& value) {
  std::string cells;
  bool any = false;
  for (size_t i = 0; i < report.metrics.size(); ++i) {
    const std::string text = value(i);
    any = any || !text.empty();
    cells += "<td>" + (text.empty() ? "–" : text) + "</td>";
  }
  if (!any) return "";
  return fmt::format("<tr><th scope=\"row\" colspan=\"2\">{}</th>{}<td colspan=\"{}\"></td></tr>\n", name, cells,
                     counts + 1);
}

std::string fold_section(const RunReport& report) {
  if (report.folds.empty()) return "";
  const std::vector<CountColumn> counts = count_columns(report);
  std::string out = heading("folds", "Folds");
  out +=
      "<p class=\"quiet\">Each fold was trained without its held-out cases and is judged on them. Mean and standard "
      "deviation are over the "
      "folds that are done.</p>\n";
  out += table_start("Folds");
  out += R"(<thead><tr><th scope="col">Fold</th><th scope="col" class="left">State</th>)";
  for (const ReportMetric& metric : report.metrics)
    out += "<th scope=\"col\">" + escape(page::capitalized(metric.name)) + "</th>";
  out += "<th scope=\"col\">Epochs</th>";
  for (const CountColumn& column : counts) out += fmt::format("<th scope=\"col\">{}</th>", column.name);
  out += "</tr></thead>\n<tbody>\n";
  std::string notes;
  for (const ReportFold& fold : report.folds) {
    const char* state = state_name(fold.state);
    out += fmt::format(R"(<tr><th scope="row">{}</th><td class="left"><span class="state {}">{}</span></td>)",
                       escape(fold.name), state, state);
    for (size_t i = 0; i < report.metrics.size(); ++i) {
      const auto value = page::value_of(fold, i);
      out += "<td>" + (value ? fmt::format("{:.3f}", *value) : std::string("–")) + "</td>";
    }
    out += fmt::format("<td>{} / {}</td>", fold.epochs_done, fold.epochs);
    for (const CountColumn& column : counts) out += "<td>" + optional_number(fold.*column.member) + "</td>";
    out += "</tr>\n";
    if (!fold.note.empty()) notes += fmt::format("<li>Fold {}: {}</li>\n", escape(fold.name), escape(fold.note));
  }
  out += "</tbody>\n<tfoot>\n";
  out += foot_row(report, "Mean ± deviation", counts.size(), [&](size_t i) {
    const metrics::Summary summary = page::summarize(report, i);
    return summary.n > 0 ? page::mean_and_deviation(summary) : "";
  });
  out += foot_row(report, "All held-out cases", counts.size(), [&](size_t i) {
    return report.metrics[i].pooled ? fmt::format("{:.3f}", *report.metrics[i].pooled) : "";
  });
  out += foot_row(report, "95 % interval", counts.size(),
                  [&](size_t i) { return page::interval_text(report.metrics[i]); });
  out += "</tfoot></table></div>\n";
  if (!notes.empty()) out += "<ul class=\"quiet remarks\">\n" + notes + "</ul>\n";
  return out;
}

std::string survival_section(const RunReport& report) {
  if (!report.kaplan_meier || report.kaplan_meier->curves.empty()) return "";
  const KaplanMeierPlot& plot = *report.kaplan_meier;
  std::string out = heading("survival", "Survival by predicted risk") + "<figure class=\"beside\">\n" +
                    kaplan_meier_svg(plot) + "\n<figcaption>\n";
  if (!plot.note.empty()) out += "<p>" + escape(plot.note) + "</p>\n";
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    const KaplanMeierCurve& curve = plot.curves[i];
    int64_t events = 0;
    for (const KaplanMeierStep& step : curve.steps) events += step.events;
    const double median = metrics::median_survival(curve.steps);
    out += fmt::format(R"(<p><span class="key" style="color:{}"></span>{}: {} cases, {} events, {}.</p>)",
                       svg::ink(i).line, escape(page::capitalized(curve.name)), metrics::at_risk_at(curve.steps, 0.0),
                       events,
                       std::isnan(median) ? "median survival not reached"
                                          : fmt::format("median survival {:.1f} {}", median, escape(plot.time_unit)));
    out += "\n";
  }
  return out +
         "<p>Shaded: 95 % confidence band (Greenwood, log-log scale). Small ticks: censored "
         "cases.</p>\n</figcaption></figure>\n";
}

std::string confusion_section(const RunReport& report) {
  constexpr size_t kMostClasses = 40;  // cells get too small to read
  if (!report.confusion || report.confusion->counts.empty()) return "";
  const size_t classes = report.confusion->counts.size();
  std::string out = heading("confusion", "Confusion matrix");
  if (classes > kMostClasses)
    return out + fmt::format("<p>{} classes are too many to show here: see confusion.svg.</p>\n", classes);
  return out + "<figure class=\"beside\">\n" + confusion_svg(*report.confusion) +
         "\n<figcaption><p>Held-out cases of all folds. Shade and per cent: share of the true class, so that each row "
         "adds up to 100 %.</p>"
         "</figcaption></figure>\n";
}

std::string curves_section(const RunReport& report) {
  const std::vector<std::string> panels = training_panels(report);
  if (panels.empty()) return "";
  std::string out = heading("training", "Training curves") + "<div class=\"panels\">\n";
  for (const std::string& panel : panels) out += "<figure>" + panel + "</figure>\n";
  return out + "</div>\n";
}

std::string worst_section(const RunReport& report) {
  if (report.worst_slides.empty()) return "";
  std::string out = heading("worst", "Slides with the largest loss") +
                    "<p class=\"quiet\">Held-out slides that the model got most wrong: look here first for labels, "
                    "stains and cuts that are unlike "
                    "the others.</p>\n<ul class=\"slides\">\n";
  for (const WorstSlide& slide : report.worst_slides) {
    out += "<li>";
    if (slide.thumbnail && !slide.thumbnail->jpeg.empty()) {
      out += fmt::format(R"(<img width="{}" height="{}" alt="Thumbnail of {}" src="data:image/jpeg;base64,{}">)",
                         slide.thumbnail->width, slide.thumbnail->height, escape(slide.slide_id),
                         page::base64(slide.thumbnail->jpeg));
    } else {
      out += "<div class=\"none\">no picture</div>";
    }
    out += "<b>" + escape(slide.slide_id) + "</b>";
    if (!slide.case_id.empty() && slide.case_id != slide.slide_id)
      out += "<span class=\"quiet\">case " + escape(slide.case_id) + "</span>";
    out +=
        fmt::format("<span>loss {:.2f}{}</span>", slide.loss, slide.fold.empty() ? "" : ", fold " + escape(slide.fold));
    if (!slide.truth.empty()) out += "<span>true: " + escape(slide.truth) + "</span>";
    if (!slide.prediction.empty()) out += "<span>predicted: " + escape(slide.prediction) + "</span>";
    out += "</li>\n";
  }
  return out + "</ul>\n";
}

std::string problems_section(const RunReport& report) {
  if (report.slide_problems.empty()) return "";
  int64_t left_out = 0;
  for (const SlideProblem& problem : report.slide_problems) left_out += problem.left_out ? 1 : 0;
  std::string out = heading("problems", "Slides with problems");
  out += fmt::format("<p class=\"quiet\">{} left out, {} used in part.</p>\n", left_out,
                     static_cast<int64_t>(report.slide_problems.size()) - left_out);
  out += "<ul class=\"issues\">\n";
  for (const SlideProblem& problem : report.slide_problems) {
    out += fmt::format("<li><b>{}</b><span>{}</span><div>{}{}</div></li>\n", escape(problem.slide_id),
                       problem.left_out ? "left out" : "in part", escape(problem.reason),
                       problem.path.empty() ? "" : "<br><span class=\"quiet\">" + escape(problem.path) + "</span>");
  }
  return out + "</ul>\n";
}

std::string cohort_section(const RunReport& report) {
  if (!report.cohort) return "";
  const CohortAudit& cohort = *report.cohort;
  bool events = false;
  for (const AuditRow& row : cohort.rows) events = events || row.events;
  std::string out = heading("cohort", "Cohort");
  if (!cohort.table.empty()) out += "<p>Table: " + escape(cohort.table) + "</p>\n";
  if (!cohort.rows.empty()) {
    out += table_start("Cohort");
    out += R"(<thead><tr><th scope="col"></th><th scope="col">Cases</th><th scope="col">Slides</th>)";
    if (events) out += "<th scope=\"col\">Events</th>";
    for (const std::string& name : cohort.count_names) out += "<th scope=\"col\">" + escape(name) + "</th>";
    out += "</tr></thead><tbody>\n";
    for (const AuditRow& row : cohort.rows) {
      out += fmt::format(R"(<tr><th scope="row">{}</th><td>{}</td><td>{}</td>)", escape(page::capitalized(row.name)),
                         row.cases, row.slides);
      if (events) out += "<td>" + optional_number(row.events) + "</td>";
      for (size_t i = 0; i < cohort.count_names.size(); ++i) {
        out += "<td>" + (i < row.counts.size() ? std::to_string(row.counts[i]) : std::string("–")) + "</td>";
      }
      out += "</tr>\n";
    }
    out += "</tbody></table></div>\n";
  }
  if (!cohort.remarks.empty()) {
    out += "<ul class=\"quiet remarks\">\n";
    for (const std::string& remark : cohort.remarks) out += "<li>" + escape(remark) + "</li>\n";
    out += "</ul>\n";
  }
  return out;
}

std::string pairs(const std::vector<ReportEntry>& entries, const char* kind) {
  std::string out = fmt::format("<dl class=\"pairs{}\">\n", kind);
  for (const ReportEntry& entry : entries)
    out += "<dt>" + escape(entry.name) + "</dt><dd>" + escape(entry.value) + "</dd>\n";
  return out + "</dl>\n";
}

std::string settings_section(const RunReport& report) {
  return report.settings.empty() ? "" : heading("settings", "Settings") + pairs(report.settings, " two");
}

// Lines break between the words of a command, not after the hyphens of its options.
std::string unbroken_words(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (end > 0) out += "<span>" + escape(text.substr(0, end)) + "</span>";
    if (end < text.size()) out += " ";
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::string repeat_section(const RunReport& report) {
  if (report.command_line.empty() && report.versions.empty()) return "";
  std::string out = heading("again", "How to run it again");
  if (!report.command_line.empty()) out += "<pre><code>" + unbroken_words(report.command_line) + "</code></pre>\n";
  if (!report.versions.empty()) out += pairs(report.versions, "");
  return out;
}

}  // namespace

std::string report_html(const RunReport& report) {
  struct Section {
    const char* id;
    const char* name;
    std::string html;
  };
  const Section sections[] = {{"folds", "Folds", fold_section(report)},
                              {"survival", "Survival", survival_section(report)},
                              {"confusion", "Confusion matrix", confusion_section(report)},
                              {"training", "Training curves", curves_section(report)},
                              {"worst", "Worst slides", worst_section(report)},
                              {"problems", "Problems", problems_section(report)},
                              {"cohort", "Cohort", cohort_section(report)},
                              {"settings", "Settings", settings_section(report)},
                              {"again", "Run it again", repeat_section(report)}};
  const std::string title = escape(report.title.empty() ? "Run report" : report.title);
  // The policy is a second lock beside escaping: whatever a table holds, the page loads nothing and runs nothing.
  std::string out = fmt::format(
      R"(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{0}</title>
<style>{1}</style>
</head>
<body>
<main>
<header>
<h1>{0}</h1>
<p class="verdict">{2}</p>
)",
      title, page::kStyle, escape(page::verdict(report)));
  out += key_figures(report);
  if (!report.warnings.empty()) {
    out += "<ul class=\"warnings\">\n";
    for (const std::string& warning : report.warnings) out += "<li>" + escape(warning) + "</li>\n";
    out += "</ul>\n";
  }
  out += "<nav aria-label=\"Sections\">\n";
  for (const Section& section : sections) {
    if (!section.html.empty()) out += fmt::format("<a href=\"#{}\">{}</a>\n", section.id, section.name);
  }
  out += "</nav>\n</header>\n";
  for (const Section& section : sections) {
    if (!section.html.empty()) out += "<section>\n" + section.html + "</section>\n";
  }
  return out + "</main>\n</body>\n</html>\n";
}

void write_report(const std::string& folder, const RunReport& report) {
  // Plots first: a page that is there has its files beside it.
  if (const std::string curves = training_curves_svg(report); !curves.empty()) {
    write_file_atomically(folder + "/training_curves.svg", curves);
  }
  if (report.kaplan_meier && !report.kaplan_meier->curves.empty()) {
    write_file_atomically(folder + "/kaplan_meier.svg", kaplan_meier_svg(*report.kaplan_meier));
  }
  if (report.confusion && !report.confusion->counts.empty()) {
    write_file_atomically(folder + "/confusion.svg", confusion_svg(*report.confusion));
  }
  write_file_atomically(folder + "/report.html", report_html(report));
}

}  // namespace pm::io
