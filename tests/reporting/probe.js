"use strict";
// What a reader would stumble over on a page shown in an iframe; run by test_page.py.

const WANTED_CONTRAST = 4.5;

function parse(color) {
  const [red, green, blue, alpha = 1] = color.match(/[\d.]+/g).map(Number);
  return {red, green, blue, alpha};
}

function over(top, below) {
  const mix = (one, other) => one * top.alpha + other * (1 - top.alpha);
  return {red: mix(top.red, below.red), green: mix(top.green, below.green), blue: mix(top.blue, below.blue), alpha: 1};
}

function background(element, view) {
  let color = {red: 0, green: 0, blue: 0, alpha: 0};
  const layers = [];
  for (let node = element; node; node = node.parentElement) {
    layers.push(parse(view.getComputedStyle(node).backgroundColor));
    if (layers.at(-1).alpha === 1) break;
  }
  color = {red: 255, green: 255, blue: 255, alpha: 1};
  for (const layer of layers.reverse()) color = over(layer, color);
  return color;
}

function luminance({red, green, blue}) {
  const [r, g, b] = [red, green, blue].map((part) => {
    part /= 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

function unreadable(view) {
  const found = {};
  const walker = view.document.createTreeWalker(view.document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest("script, style") || element.getClientRects().length === 0) continue;
    texts += 1;
    const style = view.getComputedStyle(element), svg = element instanceof view.SVGElement;
    const behind = background(element, view);
    const ratio = contrast(over(parse(svg ? style.fill : style.color), behind), behind);
    if (ratio < WANTED_CONTRAST) found[`${element.tagName}.${element.getAttribute("class")}: ${text}`] = ratio;
  }
  return {texts, found};
}

function overflowing(view) {
  const width = view.document.documentElement.clientWidth;
  const found = view.document.documentElement.scrollWidth > width ? ["the page"] : [];
  for (const element of view.document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !element.parentElement.closest(".scroll")) {
      found.push(`${element.tagName}.${element.getAttribute("class")}: ${element.textContent.slice(0, 40)}`);
    }
  }
  for (const element of view.document.querySelectorAll(".tile, figcaption, dd, pre, aside, .words")) {
    if (element.scrollWidth > element.clientWidth + 1) found.push(`inside ${element.className || element.tagName}`);
  }
  return found;
}

function outOfSight(view) {
  const found = [];
  const table = view.document.querySelector("table.classes"), box = table.parentElement.getBoundingClientRect();
  for (const mark of table.querySelectorAll("td.plot svg, th.plot div *")) {
    if (mark.getBoundingClientRect().right > box.right) found.push(`out of sight: ${mark.textContent || mark.tagName}`);
  }
  for (const views of view.document.querySelectorAll(".views")) {
    const tops = [...views.children].map((one) => one.offsetTop);
    if (tops.length > 1 && tops.at(-1) > tops.at(-2)) found.push("a picture alone below the others");
  }
  return found;
}

function column(view, table, index) {
  return [...table.tBodies[0].rows].map((row) => row.cells[index].dataset.value);
}

function sorted(view) {
  const table = view.document.querySelector("table.classes"), headings = [...table.tHead.rows[0].cells];
  const orders = {};
  for (const name of ["class", "estimate", "bias, points"]) {
    const index = headings.findIndex((heading) => (heading.querySelector("button") ?? heading).textContent.trim() === name);
    const button = headings[index].querySelector("button");
    button.click();
    orders[name] = {first: column(view, table, index), sort: headings[index].getAttribute("aria-sort")};
    button.click();
    orders[name].second = column(view, table, index);
  }
  return orders;
}

function filtered(view) {
  const filter = view.document.querySelector(".filter");
  if (!filter) return null;
  const [name, verdict] = filter.querySelectorAll("input, select");
  const shown = () => [...view.document.querySelectorAll("[data-class]")].filter((one) => one.checkVisibility());
  const all = shown().length, found = {};
  for (const [text, wanted] of [["CLASS 1", ""], ["", verdict.options[1].value], ["", ""]]) {
    name.value = text;
    verdict.value = wanted;
    name.dispatchEvent(new view.Event("input", {bubbles: true}));
    found[text || (wanted && "verdict")] = {
      classes: [...new Set(shown().map((one) => one.dataset.class))],
      count: filter.querySelector("output").textContent,
    };
  }
  return {hidden: !filter.checkVisibility(), all: shown().length === all, found};
}

function compared(view) {
  const slider = view.document.querySelector(".compare input");
  if (!slider) return null;
  const clip = () => view.getComputedStyle(slider.parentElement.querySelector(".after")).clipPath;
  const before = clip();
  slider.value = 90;
  slider.dispatchEvent(new view.Event("input"));
  return [before, clip()];
}

function readOut(view) {
  const picture = view.document.querySelector(".heat img");
  if (!picture) return null;
  const box = picture.getBoundingClientRect();
  const at = {clientX: box.right - 1, clientY: box.bottom - 1};
  picture.dispatchEvent(new view.PointerEvent("pointermove", at));
  return view.document.querySelector(".heat output").textContent;
}

addEventListener("load", () => {
  const report = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const view = frame.contentWindow;
    for (const details of view.document.querySelectorAll("details")) details.open = true;
    report[frame.name] = {
      problems: view.problems,
      resources: view.performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith("data:")),
      dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
      overflowing: overflowing(view),
      outOfSight: outOfSight(view),
      unreadable: unreadable(view),
      sorted: sorted(view),
      filtered: filtered(view),
      compared: compared(view),
      readOut: readOut(view),
      broken: [...view.document.images].filter((image) => !image.complete || !image.naturalWidth).length,
    };
  }
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(report))));
  document.body.append(result);
});
