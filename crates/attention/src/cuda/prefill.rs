//! Attention of a prompt whose data is on the host: index on the host, attention on the device.

use std::sync::atomic::Ordering;
use std::time::Instant;

use speedread_cuda::{Buffer, Stream};

use super::{Attention, AttentionElement, DeviceRows, DeviceRowsMut, Plan, TILE};
use crate::cpu::cache::Cache;
use crate::cpu::prefill::Call;
use crate::prefill::{HeadReport, Options, Report, check_values, plan_in_tiles, recall};
use crate::{Error, Pattern, Rows, RowsMut};

/// As [`crate::prefill`], on the device: same shapes, options and report. Queries are rounded to the keys' type; indexes are estimated on
/// the host, in tiles of [`TILE`]. `options.cancel` is looked at between the steps, not inside the kernel.
///
/// # Errors
/// As for [`crate::prefill`], and [`Error::Cuda`].
#[allow(clippy::too_many_arguments)]
pub fn prefill<T: AttentionElement>(
    attention: &Attention,
    stream: &Stream,
    q: Rows<'_, f32>,
    k: Rows<'_, T>,
    v: Rows<'_, T>,
    patterns: &[Pattern],
    options: &Options<'_>,
    mut out: RowsMut<'_, f32>,
    lse: Option<&mut [f32]>,
) -> Result<Report, Error> {
    check_values(k, v)?;
    if (out.rows, out.heads, out.dim) != (q.rows(), q.heads(), q.dim()) {
        return Err(Error::Shape(format!(
            "the output is {} rows x {} heads x {}, the queries are {} x {} x {}",
            out.rows,
            out.heads,
            out.dim,
            q.rows(),
            q.heads(),
            q.dim()
        )));
    }
    let wanted = q.heads() * q.rows();
    if let Some(lse) = lse.as_ref().filter(|lse| lse.len() != wanted) {
        return Err(Error::Shape(format!("the log-sum-exp has {} elements, {wanted} are needed", lse.len())));
    }
    if options.window.is_some() {
        return Err(Error::Shape("sliding windows are not supported on CUDA devices".into()));
    }
    let stopped = || options.cancel.is_some_and(|c| c.load(Ordering::Relaxed));

    let began = Instant::now();
    let (ran, indexes): (Vec<_>, Vec<_>) = plan_in_tiles(q, k, patterns, TILE, options)?.into_iter().unzip();
    let plan = Plan::new(&indexes, k.heads(), k.dim())?;
    let index_seconds = began.elapsed().as_secs_f64();
    if stopped() {
        return Err(Error::Cancelled);
    }

    let began = Instant::now();
    let device_plan = plan.upload(stream)?;
    let device_q = upload(stream, q, |x| T::round(x))?;
    let (device_k, device_v) = (upload(stream, k, |x| x)?, upload(stream, v, |x| x)?);
    let mut device_out = stream.alloc::<T>(wanted * q.dim())?;
    let mut device_lse = stream.alloc::<f32>(wanted)?;
    attention.attend(
        stream,
        DeviceRows::contiguous(device_q.view(), q.rows(), q.heads(), q.dim())?,
        DeviceRows::contiguous(device_k.view(), k.rows(), k.heads(), k.dim())?,
        DeviceRows::contiguous(device_v.view(), k.rows(), k.heads(), k.dim())?,
        &device_plan,
        options.scale,
        &mut DeviceRowsMut::contiguous(device_out.view_mut(), q.rows(), q.heads(), q.dim())?,
        Some(device_lse.view_mut()),
    )?;
    let values = stream.download(device_out.view())?;
    let all_lse = stream.download(device_lse.view())?;
    for (i, row) in values.chunks_exact(q.dim()).enumerate() {
        T::widen(row, out.row_mut(i / q.heads(), i % q.heads()));
    }
    let attention_seconds = began.elapsed().as_secs_f64();
    if stopped() {
        return Err(Error::Cancelled);
    }

    let call =
        options.audit.map(|audit| (audit, Call::new(q, Cache::pack(options.isa(), k, v, 0..k.heads()), options)));
    let heads = (0..q.heads())
        .map(|head| HeadReport {
            pattern: ran[head],
            tiles: plan.head_tiles()[head],
            dense_tiles: indexes[head].total_dense_tiles(),
            recall: call.as_ref().map(|(audit, call)| recall(call, head, *audit, &all_lse)),
        })
        .collect();
    if let Some(lse) = lse {
        lse.copy_from_slice(&all_lse);
    }
    Ok(Report { heads, index_seconds, attention_seconds })
}

/// A contiguous copy of `rows` on the device.
fn upload<S: Copy, T: AttentionElement>(
    stream: &Stream,
    rows: Rows<'_, S>,
    convert: impl Fn(S) -> T,
) -> Result<Buffer<T>, Error> {
    let mut data = Vec::with_capacity(rows.rows() * rows.heads() * rows.dim());
    for row in 0..rows.rows() {
        for head in 0..rows.heads() {
            data.extend(rows.row(row, head).iter().map(|&x| convert(x)));
        }
    }
    Ok(stream.upload(&data)?)
}
