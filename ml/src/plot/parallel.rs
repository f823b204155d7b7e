//! A sweep as parallel coordinates: an axis for each parameter and metric that differs,
//! a line for each run, coloured by one of the metrics.

use super::axis::{self, Kind};
use super::{WIDTH, clipped, width_of};
use crate::markup::escaped;

const HEIGHT: f64 = 360.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 330.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 110.0;
/// Words of a categorical axis beyond these have no label of their own.
const WORDS_MAX: usize = 12;

/// One axis: a value for each run; none where the run has none.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<String>>,
}

impl Axis {
    /// Whether two runs differ on it.
    pub(crate) fn differs(&self) -> bool {
        self.values.windows(2).any(|pair| pair[0] != pair[1])
    }
}

/// The figure.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    /// What is shown.
    pub(crate) title: String,
    /// The runs, for people.
    pub(crate) labels: Vec<String>,
    pub(crate) axes: Vec<Axis>,
    /// The axis whose value is the colour.
    pub(crate) colour: usize,
}

/// How the values of an axis lie.
enum Scale {
    Numbers(axis::Axis),
    Words(Vec<String>),
}

impl Lines {
    /// The figure and its height.
    pub(super) fn svg(&self) -> (String, f64) {
        let scales: Vec<Scale> = self.axes.iter().map(Scale::of).collect();
        let gaps = self.axes.len().saturating_sub(1).max(1) as f64;
        let x = |place: usize| LEFT + (WIDTH - LEFT - RIGHT) * place as f64 / gaps;
        let mut svg = format!(
            "<text class=\"title\" x=\"{LEFT:.0}\" y=\"18\">{}</text>",
            escaped(&clipped(&self.title, 80))
        );
        // Lines of the best stand above the others: they are drawn last.
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        let part = |run: usize| self.part(&scales, self.colour, run);
        order.sort_by(|a, b| {
            part(*a)
                .unwrap_or(-1.0)
                .total_cmp(&part(*b).unwrap_or(-1.0))
        });
        for run in order {
            let mut path = String::new();
            for place in 0..self.axes.len() {
                let Some(part) = self.part(&scales, place, run) else {
                    path.push('#');
                    continue;
                };
                let letter = if path.is_empty() || path.ends_with('#') {
                    'M'
                } else {
                    'L'
                };
                path.push_str(&format!("{letter}{:.1} {:.1}", x(place), height(part)));
            }
            let colour = part(run).map_or("#9198a1".to_owned(), colour);
            svg.push_str(&format!(
                "<path class=\"r{run}\" stroke=\"{colour}\" stroke-width=\"1.6\" opacity=\".85\" \
                 d=\"{}\"><title>{}</title></path>",
                path.replace('#', ""),
                escaped(&self.labels[run])
            ));
        }
        for (place, (axis, scale)) in self.axes.iter().zip(&scales).enumerate() {
            let room = (WIDTH - LEFT - RIGHT) / gaps;
            draw_axis(&mut svg, x(place), room, place, axis, scale);
        }
        if let (Some(axis), Some(scale)) = (self.axes.get(self.colour), scales.get(self.colour)) {
            bar(&mut svg, axis, scale);
        }
        (svg, HEIGHT)
    }

    fn part(&self, scales: &[Scale], axis: usize, run: usize) -> Option<f64> {
        let value = self.axes.get(axis)?.values.get(run)?.as_ref()?;
        match scales.get(axis)? {
            Scale::Numbers(scale) => Some(scale.part(value.parse().ok()?)),
            Scale::Words(words) => {
                let place = words.iter().position(|word| word == value)?;
                let gaps = words.len().saturating_sub(1).max(1);
                Some(place as f64 / gaps as f64)
            }
        }
    }
}

impl Scale {
    /// Numbers where all values are finite numbers, logarithmic where they span two
    /// powers of ten; words otherwise.
    fn of(axis: &Axis) -> Self {
        let given: Vec<&String> = axis.values.iter().flatten().collect();
        let numbers: Option<Vec<f64>> = given
            .iter()
            .map(|text| text.parse::<f64>().ok().filter(|number| number.is_finite()))
            .collect();
        if let Some(numbers) = numbers.filter(|numbers| !numbers.is_empty()) {
            let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
            let high = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let kind = match low > 0.0 && high / low >= 100.0 {
                true => Kind::Logarithmic,
                false => Kind::Linear,
            };
            return Self::Numbers(axis::Axis::around(numbers.into_iter(), kind));
        }
        let mut words: Vec<String> = given.into_iter().cloned().collect();
        words.sort();
        words.dedup();
        Self::Words(words)
    }
}

fn height(part: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * part
}

fn draw_axis(svg: &mut String, x: f64, room: f64, place: usize, axis: &Axis, scale: &Scale) {
    let most = ((room - 6.0) / 6.8).max(3.0) as usize;
    // Names of neighbours stand on two lines where there is little room.
    let y = if place % 2 == 1 && room < 110.0 {
        TOP - 26.0
    } else {
        TOP - 12.0
    };
    let most_name = if room < 110.0 { most * 2 } else { most };
    svg.push_str(&format!(
        "<path class=\"axis\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>\
         <text x=\"{x:.1}\" y=\"{y:.0}\" text-anchor=\"middle\">{}<title>{}</title></text>",
        escaped(&clipped(&axis.name, most_name)),
        escaped(&axis.name)
    ));
    let ticks: Vec<(f64, String)> = match scale {
        Scale::Numbers(scale) => scale
            .ticks(6.0)
            .into_iter()
            .map(|(tick, label)| (scale.part(tick), label))
            .collect(),
        Scale::Words(words) => {
            let gaps = words.len().saturating_sub(1).max(1) as f64;
            let stride = words.len().div_ceil(WORDS_MAX).max(1);
            let words = words.iter().enumerate().step_by(stride);
            words
                .map(|(place, word)| (place as f64 / gaps, word.clone()))
                .collect()
        }
    };
    for (part, label) in ticks {
        let y = height(part);
        let label = clipped(&label, (most.saturating_sub(1)).clamp(2, 16));
        svg.push_str(&format!(
            "<path class=\"axis\" d=\"M{:.1} {y:.1}h6\"/>\
             <text class=\"dim halo\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            x - 3.0,
            x - 7.0,
            y + 4.0,
            escaped(&label)
        ));
    }
}

/// The scale of colours beside the axes.
fn bar(svg: &mut String, axis: &Axis, scale: &Scale) {
    let x = WIDTH - 62.0;
    let steps = 32;
    for step in 0..steps {
        let part = f64::from(step) / f64::from(steps - 1);
        let y = height(f64::from(step + 1) / f64::from(steps));
        svg.push_str(&format!(
            "<rect x=\"{x:.0}\" y=\"{y:.1}\" width=\"12\" height=\"{:.1}\" fill=\"{}\"/>",
            (BOTTOM - TOP) / f64::from(steps) + 0.5,
            colour(part)
        ));
    }
    let name = clipped(&axis.name, 14);
    let shift = (width_of(&name) / 2.0).min(54.0);
    svg.push_str(&format!(
        "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
        (x + 6.0).min(WIDTH - 4.0 - shift),
        TOP - 40.0,
        escaped(&name)
    ));
    if let Scale::Numbers(scale) = scale {
        for (tick, label) in scale.ticks(5.0) {
            svg.push_str(&format!(
                "<text class=\"dim\" x=\"{:.0}\" y=\"{:.1}\">{}</text>",
                x + 16.0,
                height(scale.part(tick)) + 4.0,
                clipped(&label, 7)
            ));
        }
    }
}

/// From violet over green to amber, after viridis, ever lighter; its ends are left out, since
/// a page may be dark or white.
fn colour(part: f64) -> String {
    const STOPS: [[f64; 3]; 5] = [
        [126.0, 82.0, 196.0],
        [78.0, 108.0, 184.0],
        [33.0, 145.0, 140.0],
        [80.0, 180.0, 90.0],
        [222.0, 170.0, 0.0],
    ];
    let place = part.clamp(0.0, 1.0) * 4.0;
    let lower = (place.floor() as usize).min(3);
    let rest = place - lower as f64;
    let [r, g, b] = [0, 1, 2].map(|channel| {
        let (a, b) = (STOPS[lower][channel], STOPS[lower + 1][channel]);
        (a + (b - a) * rest).round() as u8
    });
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(name: &str, values: &[&str]) -> Axis {
        let values = values.iter();
        Axis {
            name: name.into(),
            values: values
                .map(|value| (*value != "-").then(|| (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn numbers_words_and_gaps_have_their_places() {
        let lines = Lines {
            title: "sweep".into(),
            labels: vec!["a".into(), "b".into(), "c".into()],
            axes: vec![
                axis("lr", &["0.0001", "0.1", "0.01"]),
                axis("model", &["small", "large", "small"]),
                axis("loss", &["0.5", "-", "0.25"]),
            ],
            colour: 2,
        };
        let (svg, _) = lines.svg();
        assert!(svg.contains(">small<") && svg.contains(">0.001<"), "{svg}");
        assert_eq!(svg.matches("<path class=\"r").count(), 3);
        assert!(svg.contains("#9198a1"), "a run without the metric is grey");
        assert!(!axis("x", &["1", "1"]).differs());
    }
}
