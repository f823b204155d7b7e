//! An axis: its range, its ticks, and where a value lies on it.

/// How values become lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Linear,
    /// Of positive values.
    Logarithmic,
}

/// A range that holds all values, with room to read the ticks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    pub(super) kind: Kind,
    low: f64,
    high: f64,
}

impl Axis {
    /// Around the values that the axis can show.
    pub(super) fn around(values: impl Iterator<Item = f64>, kind: Kind) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| shows(kind, *value)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = if kind == Kind::Linear {
                (0.0, 1.0)
            } else {
                (0.1, 1.0)
            };
        }
        if low == high {
            (low, high) = match kind {
                Kind::Logarithmic => (low / 2.0, high * 2.0),
                Kind::Linear if low == 0.0 => (-0.5, 0.5),
                Kind::Linear => (low - low.abs() * 0.05, high + high.abs() * 0.05),
            };
        }
        Self { kind, low, high }
    }

    /// The same with the ends at ticks, or with a little room where those are far.
    pub(super) fn with_room(self) -> Self {
        match self.kind {
            Kind::Linear => {
                let room = (self.high - self.low) * 0.04;
                Self {
                    low: self.low - room,
                    high: self.high + room,
                    ..self
                }
            }
            Kind::Logarithmic => {
                let room = (self.high / self.low).powf(0.04);
                Self {
                    low: self.low / room,
                    high: self.high * room,
                    ..self
                }
            }
        }
    }

    /// From 0 at the low end to 1 at the high one.
    pub(super) fn part(&self, value: f64) -> f64 {
        let part = match self.kind {
            Kind::Linear => (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0),
            Kind::Logarithmic => (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
        };
        part.clamp(0.0, 1.0)
    }

    /// Where lines are drawn, with their labels; about `wanted` of them.
    pub(super) fn ticks(&self, wanted: f64) -> Vec<(f64, String)> {
        let values = match self.kind {
            Kind::Linear => self.even(wanted),
            Kind::Logarithmic => self.powers(wanted),
        };
        let step = match values.as_slice() {
            [first, second, ..] if self.kind == Kind::Linear => second - first,
            _ => 0.0,
        };
        values
            .into_iter()
            .map(|value| (value, label(value, step)))
            .collect()
    }

    /// Multiples of 1, 2 or 5 times a power of ten.
    fn even(&self, wanted: f64) -> Vec<f64> {
        let rough = (self.high / wanted - self.low / wanted).max(f64::MIN_POSITIVE);
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|times| times * power)
            .into_iter()
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(power * 10.0);
        let first = (self.low / step).ceil();
        let ticks = (0..50).map(|index| (first + f64::from(index)) * step);
        ticks
            .take_while(|tick| *tick <= self.high + step * 1e-9)
            .collect()
    }

    /// Powers of ten; over less than two of them also 2 and 5 times one.
    fn powers(&self, wanted: f64) -> Vec<f64> {
        let (low, high) = (self.low.log10(), self.high.log10());
        let times: &[f64] = if high - low < 2.0 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let stride = ((high - low) / wanted).ceil().max(1.0) as i32;
        let mut ticks = Vec::new();
        let mut power = low.floor() as i32;
        while f64::from(power) <= high {
            if power.rem_euclid(stride) == 0 {
                ticks.extend(times.iter().map(|times| times * 10_f64.powi(power)));
            }
            power += 1;
        }
        ticks.retain(|tick| *tick >= self.low * 0.999 && *tick <= self.high * 1.001);
        if ticks.len() < 2 {
            return self
                .even(wanted)
                .into_iter()
                .filter(|tick| *tick > 0.0)
                .collect();
        }
        ticks
    }
}

/// Whether an axis of this kind has a place for a value.
pub(super) fn shows(kind: Kind, value: f64) -> bool {
    value.is_finite() && (kind == Kind::Linear || value > 0.0)
}

/// A number as short as its ticks need it: `0.05`, `1,500`, `2e-7`.
pub(super) fn label(value: f64, step: f64) -> String {
    if value == 0.0 || step > 0.0 && value.abs() < step * 1e-6 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10();
    if !(-4.0..7.0).contains(&magnitude) {
        let text = format!("{value:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = match digits.contains('.') {
            true => digits.trim_end_matches('0').trim_end_matches('.'),
            false => digits,
        };
        return format!("{digits}e{power}").replace('-', "−");
    }
    let decimals = match step {
        step if step > 0.0 => (-step.log10().floor()).clamp(0.0, 9.0) as usize,
        _ => (3.0 - magnitude.floor()).clamp(0.0, 9.0) as usize,
    };
    let mut text = format!("{value:.decimals$}");
    if step == 0.0 && text.contains('.') {
        text = text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    grouped(&text).replace('-', "−")
}

/// Thousands apart, from 10,000 on.
fn grouped(text: &str) -> String {
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let digits = whole.trim_start_matches('-').len();
    if digits < 5 {
        return text.to_owned();
    }
    let mut out = String::new();
    for (place, character) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && left.is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(character);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, kind: Kind) -> Vec<String> {
        let axis = Axis::around([low, high].into_iter(), kind);
        axis.ticks(5.0)
            .into_iter()
            .map(|(_, label)| label)
            .collect()
    }

    #[test]
    fn ticks_are_round_and_labels_short() {
        assert_eq!(
            labels(0.0, 1.0, Kind::Linear),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"].map(|l| if l == "0.0" { "0" } else { l })
        );
        assert_eq!(labels(0.72, 0.98, Kind::Linear), ["0.8", "0.9"]);
        assert_eq!(labels(0.0, 1e6, Kind::Linear)[1], "200,000");
        assert_eq!(labels(-3.0, 3.0, Kind::Linear)[0], "−2");
        assert_eq!(
            labels(1e-5, 1.0, Kind::Logarithmic),
            ["1e−5", "1e−4", "0.001", "0.01", "0.1", "1"].map(|l| if l == "1e−4" {
                "0.0001"
            } else {
                l
            })
        );
        assert_eq!(
            labels(0.2, 3.0, Kind::Logarithmic),
            ["0.2", "0.5", "1", "2"]
        );
        assert!(labels(1e-300, 1e300, Kind::Logarithmic).len() <= 8);
        assert!(labels(f64::MIN, f64::MAX, Kind::Linear).len() <= 60);
    }

    #[test]
    fn an_axis_of_nothing_or_one_value_still_has_a_length() {
        for kind in [Kind::Linear, Kind::Logarithmic] {
            for values in [
                vec![],
                vec![f64::NAN],
                vec![0.0],
                vec![7.0, 7.0],
                vec![-1.0],
            ] {
                let axis = Axis::around(values.iter().copied(), kind).with_room();
                assert!(axis.low < axis.high, "{values:?} {kind:?}");
                assert!(axis.ticks(5.0).iter().all(|(tick, _)| tick.is_finite()));
            }
        }
    }
}
