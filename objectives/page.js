// Draws the figures of a front's page and links them: what is hovered, clicked or selected in one
// view is marked in the other, in the tables and in the per-layer picture.
const FIGURES = JSON.parse(document.getElementById('figures').textContent);
const CONFIG = {displaylogo: false, responsive: true,
  modeBarButtonsToRemove: ['lasso2d', 'zoomIn2d', 'zoomOut2d', 'sendDataToCloud']};
const dark = matchMedia('(prefers-color-scheme: dark)');
const NIGHT = JSON.parse(document.getElementById('night').textContent);
const plots = [];
const linked = [];
let chosen = null;

// A figure in the colours of the page, light or dark. With its settings: drawn again without them
// it would be another picture to plotly, which then forgets who listens to it.
function dressed(id) {
  const figure = JSON.parse(JSON.stringify(FIGURES[id]),
    (_, value) => (dark.matches && typeof value === 'string' && NIGHT[value]) || value);
  figure.layout.uirevision = 'kept';  // what was zoomed to
  return {...figure, config: {...CONFIG, displayModeBar: id.startsWith('view-') ? 'hover' : false}};
}

function places(plot, number) {
  const found = [];
  plot.data.forEach((trace, curve) => {
    const index = trace.customdata ? Array.from(trace.customdata).indexOf(number) : -1;
    if (index >= 0) found.push({curveNumber: curve, pointNumber: index});
  });
  return found;
}

function ring(plot, number) {
  const curve = plot.data.findIndex(trace => trace.name === 'chosen');
  const place = places(plot, number)[0];
  if (curve < 0) return;
  const trace = place && plot.data[place.curveNumber];
  Plotly.restyle(plot, {x: [[trace ? trace.x[place.pointNumber] : null]],
    y: [[trace ? trace.y[place.pointNumber] : null]]}, [curve]);
}

function choose(number, scroll) {
  chosen = number;
  linked.forEach(plot => ring(plot, number));
  document.querySelectorAll('tr.found').forEach(row => row.classList.remove('found'));
  const row = document.getElementById('trial-' + number);
  if (row) row.classList.add('found');
  const panels = document.querySelectorAll('[data-layers]');
  const known = [...panels].some(panel => panel.dataset.layers === String(number));
  if (known) panels.forEach(panel => { panel.hidden = panel.dataset.layers !== String(number); });
  const list = document.getElementById('choose');
  if (list && known) list.value = String(number);
  const said = document.getElementById('chosen');
  if (said) said.textContent = known ? '' :
    'Trial ' + number + ' is not on the front: no file of it was kept to look into.';
  if (scroll && row) row.scrollIntoView({behavior: 'smooth', block: 'center'});
}

let busy = false;
function link(plot) {
  linked.push(plot);
  plot.on('plotly_hover', event => {
    const number = event.points[0].customdata;
    if (busy || number === undefined) return;
    busy = true;
    linked.filter(other => other !== plot).forEach(other => {
      const same = places(other, number);
      if (same.length) Plotly.Fx.hover(other, same);
    });
    busy = false;
  });
  plot.on('plotly_unhover', () => {
    linked.filter(other => other !== plot).forEach(other => Plotly.Fx.unhover(other));
  });
  plot.on('plotly_click', event => {
    if (event.points[0].customdata !== undefined) choose(event.points[0].customdata, false);
  });
  const select = numbers => linked.filter(other => other !== plot).forEach(other => {
    const curves = other.data.map((_, i) => i).filter(i => other.data[i].customdata);
    const chosen = curves.map(i => numbers === null ? null :
      Array.from(other.data[i].customdata).flatMap((n, k) => numbers.has(n) ? [k] : []));
    Plotly.restyle(other, {selectedpoints: chosen}, curves);
  });
  plot.on('plotly_selected', event =>
    select(event && event.points.length ? new Set(event.points.map(p => p.customdata)) : null));
  plot.on('plotly_deselect', () => select(null));
}

Promise.all(Object.keys(FIGURES).map(id =>
  Plotly.newPlot(id, dressed(id)).then(plot => {
    plots.push(plot);
    if (id.startsWith('view-')) link(plot);
  }))).then(() => {
    const list = document.getElementById('choose');
    const first = document.body.dataset.chosen;
    if (first) choose(Number(first), false);
    if (list) list.addEventListener('change', () => choose(Number(list.value), false));
    document.querySelectorAll('tr[id^="trial-"]').forEach(row =>
      row.addEventListener('click', () => choose(Number(row.id.slice(6)), false)));
    document.body.dataset.drawn = 'yes';
  });
dark.addEventListener('change', () =>
  Promise.all(plots.map(plot => Plotly.react(plot, dressed(plot.id)))).then(() => {
    if (chosen !== null) choose(chosen, false);
  }));
