//! What a search is asked for.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use speedread_engine::{Error, Result};

/// What attention may cost, or lose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// The time of the uniform default at the same length, which is dense attention's where the default's pattern would take no less.
    Default,
    /// A share of dense attention's time, index included.
    Time(f64),
    /// A share of dense attention's key tiles.
    Density(f64),
    /// Squared error of the attention output relative to its squared length, mean over layers, which count by their weights.
    Error(f64),
}

impl Target {
    pub(crate) fn check(self, search: Search) -> Result<()> {
        match (self, search) {
            (Target::Error(_), Search::PerHead) => Err(Error::Request(
                "a bound on the error is for the global search; give the search per head a time or a density".into(),
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Default => write!(f, "default"),
            Target::Time(share) => write!(f, "time:{share}"),
            Target::Density(share) => write!(f, "density:{share}"),
            Target::Error(bound) => write!(f, "error:{bound}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}': the forms are default, time:SHARE, density:SHARE (0 to 1), error:BOUND");
        if text == "default" {
            return Ok(Target::Default);
        }
        let (name, number) = text.split_once(':').ok_or_else(wrong)?;
        let number: f64 = number.parse().map_err(|_| wrong())?;
        match name {
            "time" if number > 0.0 && number <= 1.0 => Ok(Target::Time(number)),
            "density" if number > 0.0 && number <= 1.0 => Ok(Target::Density(number)),
            "error" if number > 0.0 && number.is_finite() => Ok(Target::Error(number)),
            _ => Err(wrong()),
        }
    }
}

/// Who shares a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Search {
    /// All heads of the model share one.
    #[default]
    Global,
    /// Every head has the same (the paper's algorithm 1).
    PerHead,
}

/// What the error over several texts is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The mean.
    #[default]
    Mean,
    /// That of the text with the largest.
    Worst,
}

/// What an error of a layer's attention output counts in the sum over layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerWeights {
    /// What it was measured to do to the model's next tokens.
    #[default]
    Measured,
    /// The same in every layer.
    Equal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip_and_wrong_ones_are_refused() {
        for text in ["default", "time:0.25", "density:1", "error:0.01"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "time",
            "time:0",
            "time:1.5",
            "density:-1",
            "density:x",
            "error:0",
            "error:inf",
            "error:nan",
            "speed:1",
        ] {
            assert!(text.parse::<Target>().unwrap_err().contains("time:SHARE"), "{text}");
        }
    }
}
