"use strict";
// The page is whole without this: it sorts, shows one candidate at a time, and copies the command.

const said = document.createElement("p");
said.className = "unseen";
said.setAttribute("role", "status");
document.querySelector("footer").append(said);

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return column ? parseFloat(cell.dataset.value) : cell.textContent;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a, column), key(b, column)];
        if (!column) return (down ? -1 : 1) * x.localeCompare(y, "en", { numeric: true });
        // What was not measured comes last either way.
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return down ? y - x : x - y;
      });
      table.tBodies[0].append(...rows);
      said.textContent = `sorted by ${button.textContent}, ${head.getAttribute("aria-sort")}`;
    });
  });
}

function choose(index) {
  for (const select of document.querySelectorAll(".chooser select")) {
    // A candidate may be missing from a section; the section then keeps what it shows.
    if ([...select.options].some((option) => option.value === index)) select.value = index;
    for (const panel of select.closest("section").querySelectorAll("[data-panel]")) {
      // What the heading says, the select says already.
      panel.querySelector("h3, h4").className = "unseen";
      panel.hidden = panel.dataset.panel !== select.value;
    }
  }
}

sortable(document.querySelector("#candidates table"));

for (const select of document.querySelectorAll(".chooser select")) {
  select.closest(".chooser").hidden = false;
  select.addEventListener("change", () => choose(select.value));
  choose(select.value);
}

const copy = document.getElementById("copy");
copy.hidden = false;
copy.addEventListener("click", async () => {
  const code = document.getElementById("command");
  const outcome = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(code.textContent);
    outcome.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    outcome.textContent = "Selected: copy it with the keyboard";
  }
});
