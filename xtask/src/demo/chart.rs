//! One small line chart as inline SVG. Colours come from the page's style sheet, so
//! that the chart follows the reader's light or dark setting.

use std::fmt::Arguments;

/// One line of a chart: its style class, its name for the tooltip, its points.
pub(super) struct Line<'a> {
    pub(super) class: String,
    pub(super) name: String,
    pub(super) points: &'a [(f64, f64)],
}

/// How values become heights.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    Linear,
    Logarithmic,
}

/// The range of values that a chart shows; charts that are compared share one.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) scale: Scale,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// Longer curves are thinned: the screen shows no more.
const POINTS_MAX: usize = 170;

impl Range {
    /// The smallest round range that holds all the values.
    pub(super) fn around(values: impl Iterator<Item = f64>, scale: Scale) -> Range {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in
            values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0))
        {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            return Range {
                low: 0.1,
                high: 1.0,
                scale,
            };
        }
        match scale {
            Scale::Linear => Range {
                low: (low * 10.0).floor() / 10.0,
                high: ((high * 10.0).ceil() / 10.0).max(low + 0.1),
                scale,
            },
            Scale::Logarithmic => {
                let low = 10_f64.powf(low.log10().floor());
                Range {
                    low,
                    high: 10_f64.powf(high.log10().ceil()).max(low * 10.0),
                    scale,
                }
            }
        }
    }

    fn part(self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => {
                (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
            }
        };
        part.clamp(0.0, 1.0)
    }

    fn ticks(self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let tenths = ((self.high - self.low) * 10.0).round();
                let step = if tenths <= 2.0 {
                    0.05
                } else if tenths <= 5.0 {
                    0.1
                } else {
                    0.2
                };
                let first = (self.low / step).ceil();
                (0..)
                    .map(|index| (first + f64::from(index)) * step)
                    .take_while(|tick| *tick <= self.high + 1e-9)
                    .collect()
            }
            Scale::Logarithmic => (0..)
                .map(|power| self.low * 10_f64.powi(power))
                .take_while(|tick| *tick <= self.high * 1.001)
                .collect(),
        }
    }
}

/// Draws the lines over the steps from 0 to the last one.
pub(super) fn svg(title: &str, lines: &[Line<'_>], range: Range) -> String {
    let last = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|point| point.0))
        .fold(1.0, f64::max);
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * step / last;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * range.part(value);
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
    for tick in range.ticks() {
        let height = y(tick);
        let label = if range.scale == Scale::Linear {
            format!("{tick:.2}")
        } else {
            format!("{tick}")
        };
        put(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{height:.1}\" y2=\"{height:.1}\"/>",
                WIDTH - RIGHT
            ),
        );
        put(
            &mut svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 7.0,
                height + 3.5
            ),
        );
    }
    for (part, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let step = (last * part).round();
        put(
            &mut svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{step}</text>",
                x(step),
                HEIGHT - 8.0
            ),
        );
    }
    for line in lines {
        let stride = line.points.len().div_ceil(POINTS_MAX).max(1);
        let points: Vec<String> = line
            .points
            .iter()
            .enumerate()
            .filter(|(index, _)| index % stride == 0 || index + 1 == line.points.len())
            .map(|(_, (step, value))| format!("{:.1},{:.1}", x(*step), y(*value)))
            .collect();
        put(
            &mut svg,
            format_args!(
                "<polyline class=\"{}\" points=\"{}\"><title>{}</title></polyline>",
                line.class,
                points.join(" "),
                line.name
            ),
        );
    }
    svg.push_str("</svg>");
    svg
}

fn put(svg: &mut String, part: Arguments<'_>) {
    svg.push_str(&part.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_round_and_hold_the_values() {
        let range = Range::around([0.72, 0.981].into_iter(), Scale::Linear);
        assert_eq!((range.low, range.high), (0.7, 1.0));
        let range = Range::around([0.004, 1.9, f64::NAN].into_iter(), Scale::Logarithmic);
        assert!((range.low - 0.001).abs() < 1e-12 && (range.high - 10.0).abs() < 1e-9);
        assert_eq!(range.ticks().len(), 5);
        let empty = Range::around(std::iter::empty(), Scale::Linear);
        assert!(empty.low < empty.high);
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_end() {
        let points: Vec<(f64, f64)> = (1..=1000).map(|step| (f64::from(step), 0.5)).collect();
        let line = Line {
            class: "c".to_owned(),
            name: "n".to_owned(),
            points: &points,
        };
        let svg = svg(
            "t",
            &[line],
            Range {
                low: 0.0,
                high: 1.0,
                scale: Scale::Linear,
            },
        );
        let drawn = svg
            .split("points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        assert!(drawn.split(' ').count() <= POINTS_MAX + 1);
        assert!(
            drawn.ends_with(&format!("{:.1},97.0", WIDTH - RIGHT)),
            "{drawn}"
        );
    }
}
