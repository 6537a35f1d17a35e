//! Where the time of a pass goes.

use std::time::{Duration, Instant};

use speedread_attention::HeadReport;

/// What time is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Matrix products.
    Linear,
    /// Estimating and building sparse indexes.
    Index,
    /// The attention kernel.
    Attention,
    /// Everything else: norms, rotary embedding, activations.
    Other,
}

/// Seconds by [`Phase`].
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Seconds([f64; 4]);

impl Seconds {
    /// The seconds of a phase.
    pub fn of(&self, phase: Phase) -> f64 {
        self.0[phase as usize]
    }

    /// Adds to a phase.
    pub fn add(&mut self, phase: Phase, seconds: f64) {
        self.0[phase as usize] += seconds;
    }

    /// Adds another pass.
    pub fn add_all(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, seconds)| *sum += seconds);
    }
}

/// What a pass over a chunk did.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PassReport {
    /// Where its time went.
    pub seconds: Seconds,
    /// Per layer, what each query head did.
    pub layers: Vec<Vec<HeadReport>>,
}

/// Splits the time of a device whose operations have run when they return.
#[derive(Debug)]
pub(crate) struct HostClock {
    last: Instant,
    pub seconds: Seconds,
}

impl Default for HostClock {
    fn default() -> Self {
        Self { last: Instant::now(), seconds: Seconds::default() }
    }
}

impl HostClock {
    /// The time since the last call goes to `phase`.
    pub fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.seconds.add(phase, (now - self.last).as_secs_f64());
        self.last = now;
    }

    /// Time since the last lap that was measured elsewhere.
    pub fn credit(&mut self, phase: Phase, seconds: f64) {
        self.seconds.add(phase, seconds);
        self.last += Duration::from_secs_f64(seconds.max(0.0));
    }
}
