//! Curves of one metric, several runs in one figure.

use super::axis::{Axis, Kind, label, shows};
use super::{COLOURS, DASHES, WIDTH, clipped, width_of};
use crate::markup::escaped;

const HEIGHT: f64 = 320.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 16.0;
const LEGEND_LINE: f64 = 20.0;
const LABEL_CHARS: usize = 44;

/// One run's curve.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    /// The run, for people.
    pub(crate) label: String,
    /// Its points in the order of x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    /// The metric.
    pub(crate) title: String,
    /// What x is, with its unit.
    pub(crate) x: String,
    pub(crate) curves: Vec<Curve>,
    /// Weight of what came before, from 0 to below 1; 0 draws the points alone.
    pub(crate) smooth: f64,
    pub(crate) x_kind: Kind,
    pub(crate) y_kind: Kind,
}

impl Chart {
    /// The figure and its height.
    pub(super) fn svg(&self) -> (String, f64) {
        let shown: Vec<(f64, f64)> = self
            .curves
            .iter()
            .flat_map(|curve| curve.points.iter().copied())
            .filter(|(x, y)| shows(self.x_kind, *x) && shows(self.y_kind, *y))
            .collect();
        let x_axis = Axis::around(shown.iter().map(|point| point.0), self.x_kind);
        let y_axis = Axis::around(shown.iter().map(|point| point.1), self.y_kind).with_room();
        let y_ticks = y_axis.ticks(6.0);
        let widest = y_ticks
            .iter()
            .map(|(_, label)| width_of(label))
            .fold(0.0, f64::max);
        let frame = Frame {
            left: (widest + 18.0).max(44.0),
            bottom: HEIGHT - 44.0,
            x_axis,
            y_axis,
        };
        let mut svg = format!(
            "<text class=\"title\" x=\"{:.0}\" y=\"18\">{}</text>",
            frame.left,
            escaped(&clipped(&self.title, 80))
        );
        frame.grid(&mut svg, &y_ticks, &self.x);
        for (place, curve) in self.curves.iter().enumerate() {
            self.draw(&mut svg, &frame, place, curve);
        }
        let height = self.legend(&mut svg, frame.left);
        (svg, height)
    }

    fn draw(&self, svg: &mut String, frame: &Frame, place: usize, curve: &Curve) {
        let colour = COLOURS[place % COLOURS.len()];
        let dash = DASHES[place / COLOURS.len() % DASHES.len()];
        svg.push_str(&format!("<g class=\"r{place}\" stroke=\"{colour}\">"));
        if self.smooth > 0.0 {
            let raw = self.path(frame, &curve.points);
            svg.push_str(&format!("<path class=\"raw\" d=\"{raw}\"/>"));
        }
        let points = smoothed(&curve.points, self.smooth);
        let path = self.path(frame, &points);
        let last = curve.points.last().map_or(String::new(), |(x, y)| {
            format!(": {} at {}", label(*y, 0.0), label(*x, 0.0))
        });
        svg.push_str(&format!(
            "<path class=\"curve\" stroke-dasharray=\"{dash}\" d=\"{path}\"><title>{}{last}</title></path>",
            escaped(&curve.label)
        ));
        // A single point is no line.
        if let [(x, y)] = points.as_slice()
            && shows(self.x_kind, *x)
            && shows(self.y_kind, *y)
        {
            svg.push_str(&format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                frame.x(*x),
                frame.y(*y)
            ));
        }
        svg.push_str("</g>");
    }

    /// A path that is interrupted where there is no value to draw.
    fn path(&self, frame: &Frame, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        let mut pen_down = false;
        for (x, y) in points {
            if !shows(self.x_kind, *x) || !shows(self.y_kind, *y) {
                pen_down = false;
                continue;
            }
            let letter = if pen_down { 'L' } else { 'M' };
            path.push_str(&format!("{letter}{:.1} {:.1}", frame.x(*x), frame.y(*y)));
            pen_down = true;
        }
        path
    }

    /// Names under the figure, in columns; returns the height of all.
    fn legend(&self, svg: &mut String, left: f64) -> f64 {
        let labels: Vec<String> = self
            .curves
            .iter()
            .map(|curve| clipped(&curve.label, LABEL_CHARS))
            .collect();
        let widest = labels
            .iter()
            .map(|label| width_of(label))
            .fold(0.0, f64::max)
            + 46.0;
        let columns = ((WIDTH - left - RIGHT) / widest).floor().max(1.0) as usize;
        for (place, name) in labels.iter().enumerate() {
            let x = left + (place % columns) as f64 * widest;
            let y = HEIGHT + 18.0 + (place / columns) as f64 * LEGEND_LINE;
            let colour = COLOURS[place % COLOURS.len()];
            let dash = DASHES[place / COLOURS.len() % DASHES.len()];
            svg.push_str(&format!(
                "<g class=\"key\" data-run=\"{place}\"><path class=\"curve\" stroke=\"{colour}\" \
                 stroke-dasharray=\"{dash}\" d=\"M{x:.0} {0:.0}h26\"/>\
                 <text x=\"{1:.0}\" y=\"{y:.0}\">{2}</text></g>",
                y - 4.0,
                x + 32.0,
                escaped(name)
            ));
        }
        HEIGHT + 22.0 + labels.len().div_ceil(columns) as f64 * LEGEND_LINE
    }

    /// What is not in the figure, for people; empty when all is.
    pub(super) fn left_out(&self) -> String {
        let points = self.curves.iter().flat_map(|curve| curve.points.iter());
        let (mut odd, mut low) = (0, 0);
        for (x, y) in points {
            if !x.is_finite() || !y.is_finite() {
                odd += 1;
            } else if !shows(self.x_kind, *x) || !shows(self.y_kind, *y) {
                low += 1;
            }
        }
        let mut notes = Vec::new();
        if odd > 0 {
            notes.push(format!(
                "{odd} points are not finite; the curve is interrupted there"
            ));
        }
        if low > 0 {
            notes.push(format!(
                "{low} points are not above zero and have no place on a logarithmic axis"
            ));
        }
        if self.smooth > 0.0 {
            notes.push(format!(
                "smoothed with weight {}, the points faint behind",
                self.smooth
            ));
        }
        notes.join("; ")
    }
}

/// Where a figure draws.
struct Frame {
    left: f64,
    bottom: f64,
    x_axis: Axis,
    y_axis: Axis,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        self.left + (WIDTH - RIGHT - self.left) * self.x_axis.part(value)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - (self.bottom - TOP) * self.y_axis.part(value)
    }

    fn grid(&self, svg: &mut String, y_ticks: &[(f64, String)], x_title: &str) {
        for (tick, label) in y_ticks {
            let y = self.y(*tick);
            svg.push_str(&format!(
                "<path class=\"grid\" d=\"M{:.1} {y:.1}H{:.1}\"/>\
                 <text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                self.left,
                WIDTH - RIGHT,
                self.left - 8.0,
                y + 4.0
            ));
        }
        let mut free_from = f64::NEG_INFINITY;
        for (tick, label) in self.x_axis.ticks(8.0) {
            let x = self.x(tick);
            svg.push_str(&format!(
                "<path class=\"axis\" d=\"M{x:.1} {:.1}v5\"/>",
                self.bottom
            ));
            // Labels keep off each other and stay on the sheet.
            let half = width_of(&label) / 2.0;
            let middle = x.min(WIDTH - 2.0 - half);
            if middle - half < free_from {
                continue;
            }
            free_from = middle + half + 8.0;
            svg.push_str(&format!(
                "<text class=\"dim\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                self.bottom + 19.0
            ));
        }
        svg.push_str(&format!(
            "<path class=\"axis\" d=\"M{0:.1} {1:.1}H{2:.1}\"/>\
             <text x=\"{3:.1}\" y=\"{4:.1}\" text-anchor=\"middle\">{5}</text>",
            self.left,
            self.bottom,
            WIDTH - RIGHT,
            (self.left + WIDTH - RIGHT) / 2.0,
            self.bottom + 37.0,
            escaped(x_title)
        ));
    }
}

/// An exponential mean of what came before, corrected for its start, as TensorBoard
/// draws it. What is no finite number stays as it is and counts nothing.
fn smoothed(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    if weight <= 0.0 {
        return points.to_vec();
    }
    let (mut mean, mut share) = (0.0, 1.0);
    points
        .iter()
        .map(|(x, y)| {
            if !y.is_finite() {
                return (*x, *y);
            }
            mean = mean * weight + (1.0 - weight) * y;
            share *= weight;
            (*x, mean / (1.0 - share))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_begins_at_the_first_value_and_follows() {
        let smooth = smoothed(&[(0.0, 2.0), (1.0, f64::NAN), (2.0, 2.0), (3.0, 4.0)], 0.5);
        assert_eq!(smooth[0], (0.0, 2.0));
        assert!(smooth[1].1.is_nan());
        assert_eq!(smooth[2], (2.0, 2.0));
        // (0.125·2 + 0.25·2 + 0.5·4) / 0.875, as of three values.
        assert!((smooth[3].1 - 2.75 / 0.875).abs() < 1e-12);
    }

    fn chart(curves: Vec<Curve>, y_kind: Kind) -> Chart {
        Chart {
            title: "loss".into(),
            x: "step".into(),
            curves,
            smooth: 0.0,
            x_kind: Kind::Linear,
            y_kind,
        }
    }

    #[test]
    fn a_curve_is_interrupted_where_there_is_no_place_for_a_value() {
        let points = [1.0, f64::NAN, 2.0, -1.0, 0.5];
        let points = points
            .iter()
            .enumerate()
            .map(|(x, y)| (x as f64, *y))
            .collect();
        let chart = chart(
            vec![Curve {
                label: "a".into(),
                points,
            }],
            Kind::Logarithmic,
        );
        let (svg, _) = chart.svg();
        let path = svg.split("class=\"curve\"").nth(1).unwrap();
        let path = path
            .split(" d=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        assert_eq!(path.matches('M').count(), 3, "{path}");
        let note = chart.left_out();
        assert!(
            note.contains("1 points are not finite") && note.contains("above zero"),
            "{note}"
        );
    }

    #[test]
    fn twenty_runs_are_told_apart() {
        let curves = (0..20).map(|place| Curve {
            label: format!("run {place}"),
            points: vec![(0.0, f64::from(place)), (1.0, 2.0)],
        });
        let (svg, _) = chart(curves.collect(), Kind::Linear).svg();
        let mut looks: Vec<&str> = svg.split("<g class=\"r").skip(1).collect();
        let look = |text: &&str| {
            let colour = text.split("stroke=\"").nth(1).unwrap()[..7].to_owned();
            let dash = text
                .split("dasharray=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .to_owned();
            (colour, dash)
        };
        let mut distinct: Vec<_> = looks.drain(..).map(|text| look(&text)).collect();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 20);
    }
}
