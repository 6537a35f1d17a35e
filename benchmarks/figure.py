"""A line chart on two logarithmic axes, as SVG."""
import math


def log_log(path, title, unit, series):
    """Draws `series`, (name, colour, points (tokens, y)) each, on axes of prompt tokens and `unit`."""
    width, height, left, right, top, bottom = 720, 400, 70, 175, 40, 50
    xs = [x for _, _, points in series for x, _ in points]
    ys = [y for _, _, points in series for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)))
    x_of = lambda x: left + (math.log(x / min(xs)) / math.log(max(xs) / min(xs))) * (width - left - right)
    y_of = lambda y: height - bottom - math.log(y / low) / math.log(high / low) * (height - top - bottom)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{left}" y="22" font-size="15">{title} (both axes logarithmic)</text>']
    tick = low
    while tick <= high:
        out.append(f'<line x1="{left}" y1="{y_of(tick):.1f}" x2="{width - right}" y2="{y_of(tick):.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 8}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}{unit}</text>')
        tick *= 10
    for x in sorted(set(xs)):
        out.append(f'<text x="{x_of(x):.1f}" y="{height - bottom + 20}" text-anchor="middle">{x:,}</text>')
    out.append(f'<text x="{(left + width - right) / 2:.0f}" y="{height - 10}" text-anchor="middle">prompt tokens</text>')
    for name, colour, points in series:
        line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for x, y in points:
            out.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4" fill="{colour}"/>')
            out.append(f'<text x="{x_of(x) + 6:.1f}" y="{y_of(y) - 7:.1f}" font-size="11" fill="{colour}">{y:.3g}</text>')
        x, y = points[-1]
        out.append(f'<text x="{x_of(x) + 14:.1f}" y="{y_of(y) + 14:.1f}" fill="{colour}">{name}</text>')
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(out + ["</svg>"]) + "\n")
