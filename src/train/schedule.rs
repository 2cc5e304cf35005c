//! What changes from update to update: the learning rate, and the probability of feeding gold.

use crate::{Error, Result};

/// How the learning rate falls after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// With the inverse square root of the update's number.
    InverseSqrt,
    /// On a line that ends at 0 behind the last update.
    Linear,
    /// Not at all.
    Constant,
}

/// The learning rate of each update.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LearningRate {
    /// The largest.
    pub peak: f64,
    /// Updates in which it rises on a line to the largest.
    pub warmup: u32,
    /// How it falls from there.
    pub decay: Decay,
    /// Updates of the run.
    pub updates: u32,
}

impl LearningRate {
    /// The learning rate of update number `update`, counted from 1.
    pub fn at(&self, update: u32) -> f64 {
        let LearningRate { peak, warmup, decay, updates } = *self;
        let number = f64::from(update);
        if update <= warmup {
            return peak * number / f64::from(warmup);
        }
        match decay {
            Decay::Constant => peak,
            Decay::InverseSqrt => peak * (f64::from(warmup.max(1)) / number).sqrt(),
            Decay::Linear => {
                let left = f64::from(updates + 1).max(number) - number;
                peak * left / (f64::from(updates + 1 - warmup.min(updates)))
            }
        }
    }
}

/// How the probability of feeding gold falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// `1 - c i`.
    Linear,
    /// `k^i`.
    Exponential,
    /// `k / (k + exp(i / k))` (Bengio et al. 2015).
    InverseSigmoid,
}

/// The probability of feeding gold at each update: 1 during the warm-up, then falling until `end`, then `floor`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GoldSchedule {
    /// How it falls.
    pub shape: Shape,
    /// Updates that feed gold only.
    pub warmup: u32,
    /// The update that reaches the floor.
    pub end: u32,
    /// The least, 0 to 1: always feeding picks collapses.
    pub floor: f64,
    /// The constant of the shape, solved so that `end` is where the floor is reached.
    constant: f64,
}

impl GoldSchedule {
    /// A schedule whose constant follows from where it ends.
    ///
    /// # Errors
    /// [`Error::Option`] for a floor outside 0..=1, of 0 where the shape never reaches it, or an end that is not behind the
    /// warm-up.
    pub fn new(shape: Shape, warmup: u32, end: u32, floor: f64) -> Result<Self> {
        let wrong = |option, expected: &str, got: String| Err(Error::Option { option, expected: expected.into(), got });
        if !(0.0..=1.0).contains(&floor) {
            return wrong("ss-floor", "a probability from 0 to 1", floor.to_string());
        }
        if floor == 0.0 && shape != Shape::Linear {
            return wrong("ss-floor", "more than 0, which this schedule never reaches", floor.to_string());
        }
        if end <= warmup {
            return wrong("ss-end", &format!("an update behind the warm-up of {warmup}"), end.to_string());
        }
        let mut schedule = GoldSchedule { shape, warmup, end, floor, constant: 1.0 };
        schedule.constant = schedule.solve();
        Ok(schedule)
    }

    /// The constant with which `end` reaches the floor.
    fn solve(&self) -> f64 {
        let steps = f64::from(self.end - self.warmup);
        match self.shape {
            Shape::Linear => (1.0 - self.floor) / steps,
            Shape::Exponential => self.floor.powf(1.0 / steps),
            // The value at `steps` rises with k: halve the interval. A floor of 1 is reached by no k and needs none.
            Shape::InverseSigmoid => {
                let (mut low, mut high) = (1e-3 * steps, 1e6 * steps);
                for _ in 0..200 {
                    let middle = (low * high).sqrt();
                    match inverse_sigmoid(middle, steps) < self.floor {
                        true => low = middle,
                        false => high = middle,
                    }
                }
                high
            }
        }
    }

    /// The probability at update number `update`, counted from 1.
    pub fn at(&self, update: u32) -> f64 {
        if update <= self.warmup {
            return 1.0;
        }
        let steps = f64::from(update - self.warmup);
        let value = match self.shape {
            Shape::Linear => 1.0 - self.constant * steps,
            Shape::Exponential => self.constant.powf(steps),
            Shape::InverseSigmoid => inverse_sigmoid(self.constant, steps),
        };
        value.clamp(self.floor, 1.0)
    }
}

fn inverse_sigmoid(k: f64, steps: f64) -> f64 {
    1.0 / (1.0 + (steps / k - k.ln()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_to_its_peak_and_falls() {
        let rate = |decay| LearningRate { peak: 1e-3, warmup: 100, decay, updates: 400 };
        for decay in [Decay::InverseSqrt, Decay::Linear, Decay::Constant] {
            assert!((rate(decay).at(1) - 1e-5).abs() < 1e-12);
            assert!((rate(decay).at(100) - 1e-3).abs() < 1e-12);
        }
        assert!((rate(Decay::InverseSqrt).at(400) - 5e-4).abs() < 1e-12);
        assert!((rate(Decay::Linear).at(250) - 1e-3 * 151.0 / 301.0).abs() < 1e-12);
        assert!(rate(Decay::Linear).at(400) > 0.0 && rate(Decay::Linear).at(401) == 0.0);
        assert_eq!(rate(Decay::Constant).at(400), 1e-3);
        let without = LearningRate { peak: 1e-3, warmup: 0, decay: Decay::InverseSqrt, updates: 9 };
        assert_eq!((without.at(1), without.at(4)), (1e-3, 5e-4));
    }

    #[test]
    fn every_shape_reaches_its_floor_where_it_should() {
        for shape in [Shape::Linear, Shape::Exponential, Shape::InverseSigmoid] {
            for (warmup, end, floor) in [(0, 1, 0.5), (40, 240, 0.5), (1000, 60_000, 0.25), (10, 20, 0.9)] {
                let schedule = GoldSchedule::new(shape, warmup, end, floor).expect("a schedule");
                assert_eq!(schedule.at(warmup), 1.0, "{schedule:?}");
                let values: Vec<f64> = (warmup..=end + 5).map(|i| schedule.at(i)).collect();
                assert!(values.is_sorted_by(|a, b| a >= b), "{schedule:?}");
                assert!((schedule.at(end) - floor).abs() < 1e-9, "{schedule:?}: {}", schedule.at(end));
                assert!(end - warmup == 1 || schedule.at(end - 1) > floor, "{schedule:?}");
                assert_eq!(schedule.at(u32::MAX), floor, "{schedule:?}");
            }
            let never = GoldSchedule::new(shape, 0, 10, 1.0).expect("a schedule");
            assert!((1..30).all(|i| never.at(i) == 1.0), "{never:?}");
        }
    }

    #[test]
    fn a_schedule_out_of_range_is_refused() {
        let refusal = |shape, warmup, end, floor| GoldSchedule::new(shape, warmup, end, floor).unwrap_err().to_string();
        assert!(refusal(Shape::Linear, 0, 9, 1.5).starts_with("option ss-floor: expected a probability"));
        assert!(refusal(Shape::Linear, 0, 9, f64::NAN).starts_with("option ss-floor: expected a probability"));
        assert!(refusal(Shape::Exponential, 0, 9, 0.0).starts_with("option ss-floor: expected more than 0"));
        assert_eq!(
            refusal(Shape::Linear, 9, 9, 0.5),
            "option ss-end: expected an update behind the warm-up of 9, got 9"
        );
    }
}
