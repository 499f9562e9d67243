"use strict";
(function () {
  const plots = Array.from(document.querySelectorAll(".plot"));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = function (plot) { return plot.clientWidth < 560; };

  function template(printing) {
    const style = getComputedStyle(document.documentElement);
    const color = function (name, paper) { return printing ? paper : style.getPropertyValue(name).trim(); };
    const axis = {
      gridcolor: color("--grid", "#dddddd"), zerolinecolor: color("--strong-line", "#888888"), zerolinewidth: 1,
      linecolor: color("--strong-line", "#888888"), tickfont: { size: 12 }, title: { font: { size: 12.5 } },
    };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("--text", "#000000") },
      xaxis: axis, yaxis: axis,
      polar: { bgcolor: "rgba(0,0,0,0)", radialaxis: axis, angularaxis: axis },
      hoverlabel: { bgcolor: color("--raised", "#ffffff"), bordercolor: color("--strong-line", "#888888"),
        font: { color: color("--text", "#000000"), size: 13 } },
    } };
  }

  function fitted(plot, printing) {
    // Names beside the points have no room on a phone; the legend above the plot remains.
    const page = printing ? "#ffffff" : getComputedStyle(document.documentElement).getPropertyValue("--page").trim();
    return (plot.figure.layout.annotations || []).filter(function (note) {
      const words = note.name.split(" ");
      return words[0] !== "wide" || !(printing || narrow(plot) || plot.hiddenVariants.has(words[1]));
    }).map(function (note) {
      // No line runs through a name.
      return Object.assign({ bgcolor: note.name === "head" ? page : page + "99", borderpad: 0 }, note);
    });
  }

  function restyle(plot, printing, more) {
    if (plot.figure) {
      Plotly.relayout(plot, Object.assign({ template: template(printing), annotations: fitted(plot, printing) }, more));
    }
  }

  function draw(plot) {
    if (plot.figure) { return; }
    const source = plot.querySelector("script");
    plot.figure = JSON.parse(source.textContent);
    source.remove();
    plot.wasNarrow = narrow(plot);
    plot.hiddenVariants = new Set();
    const layout = Object.assign({}, plot.figure.layout,
      { template: template(false), annotations: fitted(plot), dragmode: false, autosize: true });
    Plotly.newPlot(plot, plot.figure.data, layout, { responsive: true, displayModeBar: false, doubleClick: false });
  }

  function drawAll() { plots.forEach(draw); }

  // What is folded has no width to draw in.
  function folded(plot) { return plot.closest("details:not([open])") !== null; }

  document.querySelectorAll("details").forEach(function (one) {
    one.addEventListener("toggle", function () {
      if (one.open) {
        one.querySelectorAll(".plot").forEach(function (plot) { if (!folded(plot)) { draw(plot); } });
      }
    });
  });

  (function next(place) {
    if (place < plots.length) {
      if (!folded(plots[place])) { draw(plots[place]); }
      setTimeout(next, 0, place + 1);
    }
  })(0);

  dark.addEventListener("change", function () {
    plots.forEach(function (plot) { restyle(plot, false); });
  });

  window.addEventListener("resize", function () {
    plots.forEach(function (plot) {
      if (plot.figure && plot.wasNarrow !== narrow(plot)) {
        plot.wasNarrow = narrow(plot);
        restyle(plot, false);
      }
    });
  });

  window.addEventListener("beforeprint", function () {
    // Tables by level would be reams of paper.
    document.querySelectorAll("details").forEach(function (one) {
      one.wasOpen = one.open;
      one.open = !one.matches(".levels");
    });
    drawAll();
    plots.forEach(function (plot) {
      const many = plot.closest(".reliability, .resources, .invariance, .corruptions") && !plot.style.minWidth;
      restyle(plot, true, { width: many ? 330 : 680 });
    });
  });

  window.addEventListener("afterprint", function () {
    document.querySelectorAll("details").forEach(function (one) { one.open = one.wasOpen; });
    plots.forEach(function (plot) { restyle(plot, false, { width: null, autosize: true }); });
  });

  function show(button, shown) {
    if (button.getAttribute("aria-pressed") === String(shown)) { return; }
    button.setAttribute("aria-pressed", String(shown));
    // A legend is that of its panel, or of all in its section.
    button.closest(".panel, section").querySelectorAll(".plot").forEach(function (plot) {
      draw(plot);
      const traces = plot.data.reduce(function (found, trace, place) {
        return trace.meta === Number(button.dataset.variant) ? found.concat(place) : found;
      }, []);
      plot.hiddenVariants[shown ? "delete" : "add"](button.dataset.variant);
      if (traces.length) {
        Plotly.restyle(plot, { visible: shown }, traces).then(function () { restyle(plot, false); });
      }
    });
  }

  document.querySelectorAll(".legend button[data-variant]").forEach(function (button) {
    button.addEventListener("click", function () { show(button, button.getAttribute("aria-pressed") !== "true"); });
  });

  document.querySelectorAll(".legend button[data-every]").forEach(function (every) {
    every.addEventListener("click", function () {
      every.closest(".legend").querySelectorAll("button[data-variant]").forEach(function (button) {
        show(button, every.dataset.every === "true");
      });
    });
  });
})();
