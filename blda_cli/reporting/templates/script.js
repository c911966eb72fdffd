"use strict";
// Tables: a click on a heading sorts by its column, numbers from the largest, "n/a" always last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), table = heading.closest("table"), body = table.tBodies[0];
    const column = [...heading.parentElement.children].indexOf(heading);
    const text = heading.hasAttribute("data-text");
    const first = text ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? (text ? "descending" : "ascending") : first;
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.children[column].dataset.value;
    const rows = [...body.rows].sort((one, other) => {
      const a = key(one), b = key(other);
      if (text) return sign * a.localeCompare(b);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (a - b);
    });
    body.append(...rows);
  });
}
// Many classes: the filter hides the rows and charts of other classes.
for (const filter of document.querySelectorAll(".filter")) {
  const [name, verdict, output] = filter.querySelectorAll("input, select, output");
  const entries = [...document.querySelectorAll("[data-class]")], charts = document.querySelector("details.more");
  const rows = [...document.querySelector("table.classes").tBodies[0].rows];
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const text = name.value.trim().toLowerCase();
    for (const entry of entries) {
      const wanted = !verdict.value || entry.dataset.verdict === verdict.value;
      entry.hidden = !wanted || !entry.dataset.class.toLowerCase().includes(text);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    output.textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
    charts.open ||= shown < rows.length;
  });
}
// Pictures: the slider moves the edge between before and after.
for (const slider of document.querySelectorAll(".compare input")) {
  const show = () => slider.parentElement.style.setProperty("--cut", slider.value + "%");
  slider.addEventListener("input", show);
  show();
}
// Matrices of many classes: the value under the pointer.
for (const figure of document.querySelectorAll(".heat")) {
  const {names, values} = JSON.parse(figure.querySelector("script").textContent);
  const picture = figure.querySelector("img"), output = figure.querySelector("output");
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), last = names.length - 1;
    const place = (at, size) => Math.max(0, Math.min(last, Math.floor(at / size * names.length)));
    const row = place(event.clientY - box.top, box.height), column = place(event.clientX - box.left, box.width);
    output.textContent = `${names[row]} → ${names[column]}: ${values[row][column]}`;
  });
}
