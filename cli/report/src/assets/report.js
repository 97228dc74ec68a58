(() => {
  'use strict';
  const SVG = 'http://www.w3.org/2000/svg';
  const ROW = 19;
  const CHAR = 6.7;

  const svg = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const node = (name, parent) => ({ name, parent, value: 0, children: [] });

  // The boxes are in preorder: depth, index of the name, value.
  function tree(data) {
    const root = node('all', null);
    root.value = data.total;
    const path = [root];
    for (let at = 0; at < data.boxes.length; at += 3) {
      const depth = data.boxes[at];
      const child = node(data.names[data.boxes[at + 1]], path[depth]);
      child.value = data.boxes[at + 2];
      path[depth].children.push(child);
      path[depth + 1] = child;
      path.length = depth + 2;
    }
    return root;
  }

  // Callees first: each stack is added from its innermost frame outwards.
  function invert(root) {
    const inverted = node('all', null);
    inverted.value = root.value;
    const index = new Map();
    const below = (parent, name) => {
      let names = index.get(parent);
      if (!names) index.set(parent, names = new Map());
      let child = names.get(name);
      if (!child) {
        names.set(name, child = node(name, parent));
        parent.children.push(child);
      }
      return child;
    };
    const visit = (one) => {
      const own = one.value - one.children.reduce((sum, child) => sum + child.value, 0);
      let target = inverted;
      for (let frame = one; own > 0 && frame.parent; frame = frame.parent) {
        target = below(target, frame.name);
        target.value += own;
      }
      one.children.forEach(visit);
    };
    root.children.forEach(visit);
    return inverted;
  }

  function sort(one) {
    one.children.sort((a, b) => b.value - a.value || (a.name < b.name ? -1 : 1));
    one.children.forEach(sort);
  }

  function colour(name) {
    if (name === 'all' || name.startsWith('[')) return 'plain';
    let hash = 0;
    for (let at = 0; at < name.length; at++) hash = (hash * 31 + name.charCodeAt(at)) >>> 0;
    return 'c' + hash % 5;
  }

  class FlameGraph {
    constructor(area) {
      this.area = area;
      this.article = area.closest('article');
      this.readout = this.article.querySelector('.readout');
      this.search = this.article.querySelector('input');
      this.data = JSON.parse(document.getElementById(area.dataset.graph).textContent);
      const normal = tree(this.data);
      this.trees = [normal, invert(normal)];
      this.trees.forEach(sort);
      this.use(0);
      this.listen();
      this.draw();
    }

    use(which) {
      this.which = which;
      this.root = this.focus = this.selected = this.trees[which];
    }

    listen() {
      const tools = this.article.querySelector('.tools');
      tools.hidden = false;
      this.search.addEventListener('input', () => this.draw());
      tools.querySelector('[data-do=reset]').addEventListener('click', () => this.zoom(this.root));
      const inverted = tools.querySelector('[data-do=invert]');
      inverted.addEventListener('click', () => {
        this.use(1 - this.which);
        inverted.setAttribute('aria-pressed', String(this.which === 1));
        this.draw();
      });
      this.area.addEventListener('click', (event) => {
        const box = event.target.closest('g');
        if (box) this.zoom(this.boxes[box.dataset.at]);
      });
      this.area.addEventListener('mousemove', (event) => {
        const box = event.target.closest('g');
        if (box) this.describe(this.boxes[box.dataset.at]);
      });
      this.area.addEventListener('keydown', (event) => this.key(event));
      // Not in the observer itself: a drawing that changes the size would be observed again.
      const resized = () => { if (this.area.clientWidth !== this.width) this.draw(); };
      new ResizeObserver(() => requestAnimationFrame(resized)).observe(this.area);
    }

    key(event) {
      const one = this.selected;
      const siblings = one.parent ? one.parent.children : [one];
      const at = siblings.indexOf(one);
      const moves = {
        ArrowDown: one.children[0],
        ArrowUp: one === this.focus ? null : one.parent,
        ArrowRight: one === this.focus ? null : siblings[at + 1],
        ArrowLeft: one === this.focus ? null : siblings[at - 1],
        Home: this.focus,
      };
      if (event.key === 'Enter' || event.key === ' ') this.zoom(one);
      else if (event.key === 'Escape') this.zoom(this.root);
      else if (event.key in moves) this.select(moves[event.key] || one);
      else return;
      event.preventDefault();
    }

    select(one) {
      this.selected = one;
      this.draw();
      this.describe(one);
    }

    zoom(one) {
      this.focus = one;
      this.select(one);
    }

    percent(value) {
      return (value * 100 / (this.root.value || 1)).toFixed(1) + ' %';
    }

    describe(one) {
      this.readout.textContent = `${one.name}: ${one.value} ${this.data.unit}, ${this.percent(one.value)}`;
    }

    draw() {
      this.width = this.area.clientWidth;
      this.boxes = [];
      const wanted = this.search.value.trim().toLowerCase();
      const picture = svg('svg', { role: 'img', 'aria-label': this.area.dataset.label, width: this.width });
      const above = [];
      for (let one = this.focus.parent; one; one = one.parent) above.unshift(one);
      above.forEach((one, depth) => picture.append(this.box(one, 0, this.width, depth, wanted, 'above')));
      this.depth = above.length;
      this.found = 0;
      this.subtree(picture, this.focus, 0, this.width, above.length, wanted, false);
      picture.setAttribute('height', (this.depth + 1) * ROW);
      this.area.replaceChildren(picture);
      if (wanted) this.readout.textContent = `${this.percent(this.found)} of all ${this.data.unit} have a function with "${wanted}"`;
    }

    subtree(picture, one, x, width, depth, wanted, isInHit) {
      if (width < 0.7) return;
      const isHit = wanted !== '' && one.name.toLowerCase().includes(wanted);
      if (isHit && !isInHit) this.found += one.value;
      this.depth = Math.max(this.depth, depth);
      picture.append(this.box(one, x, width, depth, wanted, ''));
      for (const child of one.children) {
        const share = width * child.value / (one.value || 1);
        this.subtree(picture, child, x, share, depth + 1, wanted, isInHit || isHit);
        x += share;
      }
    }

    box(one, x, width, depth, wanted, extra) {
      const isHit = wanted !== '' && one.name.toLowerCase().includes(wanted);
      const selected = one === this.selected && document.activeElement === this.area ? ' selected' : '';
      const box = svg('g', { class: `${isHit ? 'hit' : colour(one.name)} ${extra}${selected}`, 'data-at': this.boxes.length });
      this.boxes.push(one);
      box.append(svg('rect', { x, y: depth * ROW, width: Math.max(width, 0.7), height: ROW - 1, rx: 2 }));
      const fit = Math.floor((width - 6) / CHAR);
      if (fit >= 3) {
        const text = svg('text', { x: x + 3, y: depth * ROW + 13 });
        text.textContent = one.name.length > fit ? one.name.slice(0, fit - 1) + '…' : one.name;
        box.append(text);
      }
      return box;
    }
  }

  function themes() {
    const group = document.querySelector('.theme');
    group.hidden = false;
    group.addEventListener('click', (event) => {
      const chosen = event.target.closest('button');
      if (!chosen) return;
      if (chosen.dataset.theme === 'auto') delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = chosen.dataset.theme;
      for (const button of group.children) button.setAttribute('aria-pressed', String(button === chosen));
    });
  }

  themes();
  const graphs = [...document.querySelectorAll('.flame')].map((area) => new FlameGraph(area));
  // On paper, nothing can be unfolded, and the page is narrower.
  addEventListener('beforeprint', () => {
    document.querySelectorAll('details').forEach((one) => { if (!one.closest('#facts')) one.open = true; });
    graphs.forEach((graph) => graph.draw());
  });
})();
