"""Charts as SVG: lines, heat maps, bars, and maps of heads. Colours are of Okabe and Ito, which colour-blind readers tell apart too."""
import math

BLACK, GREY, BLUE, SKY, GREEN, ORANGE, RED, PINK = "#222222", "#b5b5b5", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"


class Svg:
    """A picture in the making; `at` moves what is drawn next."""

    def __init__(self, width, height, title):
        self.x = self.y = 0
        self.out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
                    f'<rect width="{width}" height="{height}" fill="white"/>']
        self.text(16, 22, title, size=15)

    def at(self, x, y):
        self.x, self.y = x, y

    def text(self, x, y, text, anchor="start", colour=BLACK, size=13):
        self.out.append(f'<text x="{x + self.x:.1f}" y="{y + self.y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{text}</text>')

    def line(self, points, colour, width=1.0, dashes="none"):
        path = " ".join(f"{x + self.x:.1f},{y + self.y:.1f}" for x, y in points)
        self.out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>')

    def dot(self, x, y, colour, radius=4):
        self.out.append(f'<circle cx="{x + self.x:.1f}" cy="{y + self.y:.1f}" r="{radius}" fill="{colour}"/>')

    def boxes(self, places, width, height, colour):
        """Of one colour and size; in one path, as a map has a thousand of them."""
        path = "".join(f"M{x + self.x:.4g} {y + self.y:.4g}h{width:.4g}v{height:.4g}h{-width:.4g}z" for x, y in places)
        self.out.append(f'<path d="{path}" fill="{colour}"/>')

    def save(self, path):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(self.out + ["</svg>"]) + "\n")


def log_place(values, low, high):
    """Where values stand between low and high on a logarithmic axis."""
    least, most = min(values), max(values)
    return lambda value: low + math.log(value / least) / math.log(most / least) * (high - low)


def ticks_down(svg, left, right, ticks, place, unit=""):
    """The lines of a vertical axis and their numbers."""
    for tick in ticks:
        svg.line([(left, place(tick)), (right, place(tick))], "#dddddd")
        svg.text(left - 8, place(tick) + 4, f"{tick:g}{unit}", "end")


def ticks_across(svg, ticks, place, y, name):
    for tick in ticks:
        svg.text(place(tick), y, f"{tick:,}", "middle")
    svg.text((place(min(ticks)) + place(max(ticks))) / 2, y + 20, name, "middle")


def apart(places, least):
    """The same places, moved down where two are closer than `least`."""
    moved, last = {}, -math.inf
    for key, place in sorted(places.items(), key=lambda item: item[1]):
        moved[key] = last = max(place, last + least)
    return moved


def log_log(path, title, unit, series):
    """Draws `series`, (name, colour, points (tokens, y)) each, on axes of prompt tokens and `unit`."""
    width, height, left, right, top, bottom = 720, 400, 70, 175, 40, 50
    xs = sorted({x for _, _, points in series for x, _ in points})
    ys = [y for _, _, points in series for _, y in points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    x_of = log_place(xs, left, width - right)
    y_of = log_place((10**low, 10**high), height - bottom, top)
    svg = Svg(width, height, f"{title} (both axes logarithmic)")
    ticks_down(svg, left, width - right, [10.0**power for power in range(low, high + 1)], y_of, unit)
    ticks_across(svg, xs, x_of, height - bottom + 20, "prompt tokens")
    for name, colour, points in series:
        svg.line([(x_of(x), y_of(y)) for x, y in points], colour, 2.5)
        for x, y in points:
            svg.dot(x_of(x), y_of(y), colour)
        x, y = points[-1]
        svg.text(x_of(x) + 14, y_of(y) + 18, name, colour=colour)
    for x in xs:
        here = {(colour, f"{y:.3g}"): y_of(y) - 7 for _, colour, points in series for at, y in points if at == x}
        for (colour, number), place in apart(here, 12).items():
            svg.text(x_of(x) + 6, place, number, colour=colour, size=11)
    svg.save(path)


def scores(path, title, lines, differences, heading):
    """Left `lines`, (name, colour, {tokens: score}), on a logarithmic axis of tokens; right `differences` from the first line,
    (name, colour, {tokens: (points, low, high)}), which are too small to be seen left; `heading` says what is among them."""
    width, height, top, bottom = 960, 400, 62, 345
    svg = Svg(width, height, title)
    xs = sorted({x for _, _, points in lines for x in points})
    ys = [y for _, _, points in lines for y in points.values()]
    low, high = 10 * math.floor(min(ys) / 10), 10 * math.ceil(max(ys) / 10)
    x_of, y_of = log_place(xs, 62, 380), lambda y: bottom - (y - low) / (high - low) * (bottom - top)
    svg.text(46, 46, "mean score")
    ticks_down(svg, 46, 396, range(low, high + 1, 10), y_of)
    ticks_across(svg, xs, x_of, bottom + 22, "prompt tokens")
    for place, (name, colour, points) in enumerate(lines):
        # The first is a broad band below the others, which lie on it where they are equal. No line passes a length that was not measured.
        for ends in zip(xs, xs[1:]):
            if all(x in points for x in ends):
                svg.line([(x_of(x), y_of(points[x])) for x in ends], colour, 2 if place else 8)
        for x, y in points.items():
            svg.dot(x_of(x), y_of(y), colour, 3.5 if place else 6)
    colours = {name: colour for name, colour, _ in lines}
    ends = {name: y_of(points[max(points)]) + 4 for name, _, points in lines}
    for name, y in apart(ends, 17).items():
        svg.text(404, y, name, colour=colours[name] if colours[name] != GREY else BLACK)
    svg.text(560, 46, heading)
    intervals(svg, xs, differences, top, bottom)
    svg.save(path)


def intervals(svg, xs, differences, top, bottom):
    """The right side of `scores`: at each length a dot and an interval for each setting, side by side."""
    left, right = 560, 940
    bounds = [bound for _, _, points in differences for _, *both in points.values() for bound in both]
    low, high = math.floor(min(bounds)), math.ceil(max(bounds))
    y_of = lambda y: bottom - (y - low) / (high - low) * (bottom - top)
    column = (right - left) / len(xs)
    x_of = lambda x: left + (xs.index(x) + 0.5) * column
    ticks_down(svg, left, right, range(low, high + 1), y_of)
    svg.line([(left, y_of(0)), (right, y_of(0))], GREY, 3)
    ticks_across(svg, xs, x_of, bottom + 22, "prompt tokens")
    for place, (name, colour, points) in enumerate(differences):
        aside = (place - (len(differences) - 1) / 2) * 20
        for x, (middle, least, most) in points.items():
            svg.line([(x_of(x) + aside, y_of(least)), (x_of(x) + aside, y_of(most))], colour, 2)
            svg.dot(x_of(x) + aside, y_of(middle), colour)


def heat(share):
    """From dark red by yellow to green: green is the lighter one, for who sees it and red alike."""
    stops = [(178, 24, 43), (253, 211, 106), (110, 190, 120)]
    first = min(int(2 * share), 1)
    return "#" + "".join(f"{round(a + (2 * share - first) * (b - a)):02x}" for a, b in zip(stops[first], stops[first + 1]))


def heat_maps(path, title, panels):
    """Draws the share found by depth (rows) and length (columns): `panels` are (name, {(depth, length): (found, samples)})."""
    cell_w, cell_h, left, top, gap = 48, 30, 60, 72, 26
    lengths = sorted({length for _, cells in panels for _, length in cells})
    depths = sorted({depth for _, cells in panels for depth, _ in cells})
    # As wide as what is written above, at least.
    panel = max(len(lengths) * cell_w, *(7.5 * len(name) for name, _ in panels)) + gap
    svg = Svg(max(left + len(panels) * panel, 9 * len(title)), top + len(depths) * cell_h + 48, title)
    for row, depth in enumerate(depths):
        svg.text(left - 8, top + (row + 0.5) * cell_h + 4, f"{100 * depth:.0f} %", "end", size=12)
    svg.text(16, top - 8, "depth", size=12)
    for place, (name, cells) in enumerate(panels):
        svg.at(left + place * panel, top)
        svg.text(0, -12, name)
        for (depth, length), (found, samples) in cells.items():
            x, y, share = lengths.index(length) * cell_w, depths.index(depth) * cell_h, found / samples
            svg.boxes([(x + 1, y + 1)], cell_w - 2, cell_h - 2, heat(share))
            svg.text(x + cell_w / 2, y + cell_h / 2 + 4, f"{100 * share:.0f}", "middle", "white" if share < 0.25 else BLACK, 12)
        for column, length in enumerate(lengths):
            svg.text((column + 0.5) * cell_w, len(depths) * cell_h + 16, f"{length:,}", "middle", size=11)
        svg.text(len(lengths) * cell_w / 2, len(depths) * cell_h + 34, "prompt tokens", "middle", size=12)
    svg.save(path)


def bars(path, title, panels, colours):
    """Draws changes in percent: `panels` are (name, [(group, [(setting, change)])]), each with a scale of its own."""
    names, room, row_h, top, panel = 150, 120, 18, 56, 350
    rows = max(sum(len(rows) + 1.5 for _, rows in groups) for _, groups in panels)
    svg = Svg(max(len(panels) * panel, 9 * len(title)), top + rows * row_h + 8, title)
    for place, (name, groups) in enumerate(panels):
        svg.at(16 + place * panel, top)
        svg.text(0, -6, name, size=14)
        changes = [change for _, rows in groups for _, change in rows]
        low, high = min(0, *changes), max(0, *changes)
        x_of = lambda change: names + (change - low) / (high - low) * room
        y = 14
        for group, rows in groups:
            svg.text(0, y, group, size=12)
            for setting, change in rows:
                y += row_h
                svg.text(names - 6, y, setting, "end", size=12)
                svg.boxes([(min(x_of(0), x_of(change)), y - 11)], abs(x_of(change) - x_of(0)), 13, colours[setting])
                svg.text(max(x_of(0), x_of(change)) + 5, y, f"{round(change, 2) + 0.0:.2f} %", size=12)
            y += 1.5 * row_h
        svg.line([(x_of(0), 18), (x_of(0), y - 1.5 * row_h + 6)], BLACK)
    svg.save(path)


def head_maps(path, title, panels, colours):
    """Draws the kind of every head: `panels` are (name, a list of kinds for each layer), `colours` by kind, which the legend shows."""
    cell, left, top, gap = 13, 44, 96, 42
    layers, heads = len(panels[0][1]), len(panels[0][1][0])
    panel = heads * cell + gap
    svg = Svg(left + len(panels) * panel, top + layers * cell + 16, title)
    x = 16
    for kind, colour in colours.items():
        svg.boxes([(x, 36)], 13, 13, colour)
        svg.text(x + 18, 47, kind)
        x += 46 + 7 * len(kind)
    for place, (name, kinds) in enumerate(panels):
        svg.at(left + place * panel, top)
        svg.text(0, -20, name)
        for head in range(0, heads, 2):
            svg.text((head + 0.5) * cell, -5, head, "middle", size=10)
        for layer in range(0, layers, 2):
            svg.text(-5, (layer + 0.5) * cell + 4, layer, "end", size=10)
        for kind, colour in colours.items():
            places = [(head * cell, layer * cell) for layer, row in enumerate(kinds) for head, each in enumerate(row) if each == kind]
            if places:
                svg.boxes(places, cell - 1, cell - 1, colour)
    svg.save(path)
