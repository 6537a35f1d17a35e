//! Where the device's time goes: events in the queue, read when all is done. The host's clock would only see how fast work is queued.

use speedread_cuda::{Event, Stream};

use crate::Result;
use crate::backend::{Phase, Seconds};

/// Layers that the host may be ahead of the device.
const AHEAD: usize = 1;

/// The clock of a pass.
#[derive(Debug, Default)]
pub(super) struct DeviceClock {
    /// Ends of phases, the first one the start; empty outside a pass.
    marks: Vec<(Event, Phase)>,
    layers: Vec<Event>,
}

impl DeviceClock {
    /// Starts a pass; one that was not finished is forgotten.
    pub fn start(&mut self, stream: &Stream) -> Result<()> {
        self.forget();
        self.marks.push((stream.record()?, Phase::Other));
        Ok(())
    }

    /// Forgets a pass that was not finished: what follows is not part of it.
    pub fn forget(&mut self) {
        self.layers.clear();
        self.marks.clear();
    }

    /// What was queued since the last mark is `phase`; nothing outside a pass, where nobody asks.
    pub fn mark(&mut self, stream: &Stream, phase: Phase) -> Result<()> {
        if !self.marks.is_empty() {
            self.marks.push((stream.record()?, phase));
        }
        Ok(())
    }

    /// Ends a layer, and waits until the device is close.
    pub fn layer_done(&mut self, stream: &Stream) -> Result<()> {
        self.layers.push(stream.record()?);
        if let Some(behind) = self.layers.len().checked_sub(1 + AHEAD) {
            self.layers[behind].synchronize()?;
        }
        Ok(())
    }

    /// Ends a pass and waits for it.
    pub fn finish(&mut self, stream: &Stream) -> Result<Seconds> {
        self.mark(stream, Phase::Other)?;
        stream.synchronize()?;
        let mut seconds = Seconds::default();
        for pair in self.marks.windows(2) {
            let [(from, _), (to, phase)] = pair else { continue };
            seconds.add(*phase, from.milliseconds_to(to)? / 1e3);
        }
        self.marks.clear();
        self.layers.clear();
        Ok(seconds)
    }
}
