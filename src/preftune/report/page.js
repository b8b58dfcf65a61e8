"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themeColor = (role) => getComputedStyle(document.documentElement).getPropertyValue("--" + role).trim();
  // Plotly reads a little HTML in texts; a name of a run or a row must not be taken for it.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const faded = (hex, alpha) => {
    const [r, g, b] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };

  function trace(series, chart) {
    const ink = themeColor(series.color), style = series.style || "line";
    const base = { type: "scatter", name: plain(series.name), x: series.x, y: series.y, connectgaps: false };
    const line = { color: ink, width: 2, dash: series.dash ? "4px,3px" : "solid" };
    if (style === "points") {
      const few = series.x.length < 8;  // a cloud shows where it is dense; single points stand out
      const marker = { color: few ? ink : faded(ink, 0.45), size: few ? 9 : 6, line: { width: 0 } };
      const hovertemplate = `%{text}<br>${plain(chart.y)} %{y:.3~g}<br>${plain(chart.x || "")} %{x}<extra></extra>`;
      return { ...base, mode: "markers", marker, text: (series.text || []).map(plain), hovertemplate };
    }
    if (style === "faint") return { ...base, mode: "lines", line: { color: faded(ink, 0.32), width: 1 }, hoverinfo: "skip" };
    if (style === "dots") {
      const marker = { color: ink, size: 6, line: { color: themeColor("surface"), width: 1.5 } };
      return { ...base, mode: "lines+markers", line, marker };
    }
    if (style === "steps") {
      return { ...base, mode: "lines", line: { ...line, shape: "vh" }, fill: "tozeroy", fillcolor: faded(ink, 0.08) };
    }
    if (!chart.stack) return { ...base, mode: "lines", line };
    return { ...base, mode: "lines", stackgroup: "all", line: { ...line, width: 1 }, fillcolor: faded(ink, 0.35) };
  }

  function guide(y, dash) {
    const line = { color: themeColor("muted"), width: 1, dash };
    return { type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line, layer: "below" };
  }

  // Shares lie between 0 and 1, and a tenth of that at least is shown: less of a difference would look like a course.
  function around(shares) {
    const most = Math.max(...shares), low = Math.max(0, Math.min(...shares, most - 0.1));
    const high = Math.max(most, low + 0.1), margin = 0.05 * (high - low);
    return [low - margin, high + margin];
  }

  function layout(chart) {
    const scatter = chart.series.some((series) => series.style === "points");
    const axis = { zeroline: false, automargin: true, fixedrange: true, ticks: "", tickfont: { color: themeColor("muted") } };
    const values = chart.series.flatMap((series) => series.y).filter((y) => y !== null).map(Math.abs);
    const positions = chart.series.flatMap((series) => series.x);
    const few = chart.x === "step" && Math.max(...positions) - Math.min(...positions) < 6 ? { dtick: 1 } : {};
    const doubling = chart.doubling ? { type: "log", tickvals: positions } : {};
    const small = Math.max(...values) < 0.001;
    const shares = chart.percent ? { range: around(chart.half ? [0.5, ...values] : values) } : {};
    return {
      autosize: true, dragmode: false, showlegend: false, hovermode: scatter ? "closest" : "x unified",
      margin: { l: 36, r: 14, t: 10, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: themeColor("soft") },
      hoverlabel: { bgcolor: themeColor("surface"), bordercolor: themeColor("rule"), font: { color: themeColor("ink") }, namelength: -1 },
      shapes: [...(chart.zero ? [guide(0, "solid")] : []), ...(chart.half ? [guide(0.5, "4px,3px")] : [])],
      xaxis: { ...axis, nticks: 6, ...few, ...doubling, showgrid: false, showline: true, linecolor: themeColor("rule"), title:
        { text: plain(chart.x || ""), standoff: 6, font: { size: 12, color: themeColor("muted") } } },
      yaxis: { ...axis, gridcolor: themeColor("grid"), nticks: 6, tickformat: chart.percent ? ".0%" : undefined,
        hoverformat: chart.percent ? ".1%" : ".4~g", exponentformat: small ? "power" : "SI", rangemode: chart.floor ? "tozero" : "normal", ...shares },
    };
  }

  function draw() {
    for (const chart of charts) {
      const plot = document.getElementById("chart-" + chart.id);
      const traces = chart.series.map((series) => trace(series, chart));
      Plotly.react(plot, traces, layout(chart), { displayModeBar: false, showTips: false, typesetMath: false });
    }
  }
  draw();
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => Plotly.Plots.resize(entry.target)));
  document.querySelectorAll(".plot").forEach((plot) => watch.observe(plot));
  dark.addEventListener("change", draw);
})();
