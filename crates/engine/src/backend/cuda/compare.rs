//! Room for a comparison of patterns, looked at before it begins: plans of sessions do not count it, since few compare.

use speedread_attention::compare::Plan;
use speedread_attention::cuda::{CallShape, CompareBytes};

use super::context::CudaContext;
use crate::memory::bytes;
use crate::{Error, Result};

/// What comparisons of a session were found to have room for.
#[derive(Debug, Default)]
pub(super) struct Room(Option<CompareBytes>);

/// What a session has on the device.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Bytes that grow with the length of its prompt: a shorter one would leave more.
    by_length: u64,
    /// Bytes that the workspace of comparisons has already.
    workspace: u64,
}

impl Room {
    /// Refuses a comparison for which the device has no room; `by_length` bytes of the session grow with the length of its prompt.
    pub fn check(
        &mut self,
        context: &CudaContext,
        shape: &CallShape,
        plans: &[Vec<Plan<'_>>],
        by_length: u64,
    ) -> Result<()> {
        let needed = needed(shape, plans)?;
        let fits = |found: CompareBytes| needed.outputs <= found.outputs && needed.workspace <= found.workspace;
        // Once for all layers: asking waits for the device, and gives back what it keeps for the next buffers.
        if self.0.is_some_and(fits) {
            return Ok(());
        }
        let held = Held { by_length, workspace: self.0.map_or(0, |found| found.workspace) };
        check(shape, plans, held, context.free_memory()?)?;
        let before = self.0.unwrap_or(needed);
        self.0 = Some(CompareBytes {
            outputs: before.outputs.max(needed.outputs),
            workspace: before.workspace.max(needed.workspace),
        });
        Ok(())
    }
}

fn needed(shape: &CallShape, plans: &[Vec<Plan<'_>>]) -> Result<CompareBytes> {
    Ok(CompareBytes::of(shape, plans, size_of::<half::bf16>())?)
}

/// Compares what is needed with `free` bytes; the error says how long a prompt may be.
fn check(shape: &CallShape, plans: &[Vec<Plan<'_>>], held: Held, free: u64) -> Result<()> {
    let more = |needed: CompareBytes| needed.outputs.saturating_add(needed.workspace.saturating_sub(held.workspace));
    let all = needed(shape, plans)?;
    if more(all) <= free {
        return Ok(());
    }
    // Of a prompt read in one piece, as all that are compared.
    let fits = |len: usize| {
        let Ok(needed) = needed(&CallShape { rows: len, start: 0, ..*shape }, plans) else { return false };
        let session = (held.by_length as f64 * (len as f64 / shape.len() as f64)) as u64;
        more(needed).saturating_add(session) <= free.saturating_add(held.by_length)
    };
    let (mut low, mut high) = (0, shape.len());
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    let advice = match low {
        0 => "none fits: use a smaller model, or --device cpu".into(),
        _ => format!("at most {low} tokens fit; use a shorter length"),
    };
    Err(Error::Request(format!(
        "comparing {} patterns a head over {} tokens takes {} of device memory beside the session, {} are free; {advice}",
        plans.len(),
        shape.len(),
        bytes(more(all)),
        bytes(free)
    )))
}

#[cfg(test)]
mod tests {
    use speedread_attention::Pattern;

    use super::*;

    #[test]
    fn too_long_a_comparison_says_what_fits() {
        // 32 heads of 128 over 128K tokens.
        let shape = CallShape { rows: 1 << 17, start: 0, heads: 32, kv_heads: 8, dim: 128 };
        let pattern: Pattern = "vertical-slash-tiles:64,16".parse().unwrap();
        let plans = vec![vec![Plan::Pattern(pattern); 32]; 3];
        let none = Held { by_length: 0, workspace: 0 };
        let needed = needed(&shape, &plans).unwrap();
        // Two outputs in bf16, two log-sum-exps, and sums of 32 bytes for 64 rows.
        assert_eq!(needed.outputs, (2 * 32 * (128 * 2 + 4) + 32 * 32 / 64) << 17);
        let all = needed.outputs + needed.workspace;
        check(&shape, &plans, none, all).unwrap();
        let error = check(&shape, &plans, none, all - 1).unwrap_err().to_string();
        assert!(error.contains("3 patterns") && error.contains("131072 tokens"), "{error}");
        let longest = |error: &str| -> usize {
            error.split("at most ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        };
        assert!((125_000..1 << 17).contains(&longest(&error)), "{error}");
        // What the workspace has already is not taken again.
        check(&shape, &plans, Held { workspace: needed.workspace, ..none }, needed.outputs).unwrap();
        // Of half the memory about half the length; a session that shrinks too leaves more.
        let half = check(&shape, &plans, none, all / 2).unwrap_err().to_string();
        assert!((55_000..66_000).contains(&longest(&half)), "{half}");
        let shrinks = Held { by_length: all, workspace: 0 };
        let more = check(&shape, &plans, shrinks, all / 2).unwrap_err().to_string();
        assert!((90_000..100_000).contains(&longest(&more)), "{more}");
        let error = check(&shape, &plans, none, 0).unwrap_err().to_string();
        assert!(error.contains("--device cpu"), "{error}");
    }
}
