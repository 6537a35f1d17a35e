//! What made a measurement: for the JSON of benchmarks, so that a number can be traced and made again.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use speedread_cuda::Device;
use speedread_engine::device::DeviceChoice;

use crate::output;

/// A program that does not answer is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Version, commit, command line, date and device. `device` is the name of the CUDA device that ran, `None` for the CPU. Called after the
/// last run: clocks are those of a device that is still warm.
pub fn of_run(choice: DeviceChoice, device: Option<&str>) -> Map<String, Value> {
    let mut all = Map::new();
    let mut add = |name: &str, value: Value| {
        if !value.is_null() {
            all.insert(name.to_owned(), value);
        }
    };
    add("version", json!(env!("CARGO_PKG_VERSION")));
    add("commit", json!(option_env!("SPEEDREAD_COMMIT")));
    add("command", json!(command_line(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()))));
    let now = jiff::Timestamp::now();
    add("date", json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    add("threads", json!(rayon::current_num_threads()));
    match device {
        None => add("cpu", json!(output::cpu())),
        Some(name) => {
            // Threads and processor of the host have no part in the device's times.
            all.remove("threads");
            all.insert("device".into(), json!(name));
            all.insert("host_cpu".into(), json!(output::cpu()));
            if let Some((major, minor)) = Device::driver_version() {
                all.insert("driver_cuda_version".into(), json!(format!("{major}.{minor}")));
            }
            let ordinal = if let DeviceChoice::Cuda(ordinal) = choice { ordinal } else { 0 };
            all.extend(nvidia_smi(ordinal, name).unwrap_or_default());
        }
    }
    all
}

/// The peak of the process's memory, under a name that says whose it is.
pub fn peak_memory(device: Option<&str>) -> (&'static str, Value) {
    let name = if device.is_some() { "host_peak_memory_bytes" } else { "peak_memory_bytes" };
    (name, json!(output::peak_memory()))
}

/// The arguments as a shell would take them; of the program only its name.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let quoted = |arg: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%*".contains(c);
        match !arg.is_empty() && arg.chars().all(plain) {
            true => arg,
            false => format!("'{}'", arg.replace('\'', r"'\''")),
        }
    };
    ["speedread".to_owned()].into_iter().chain(args.skip(1).map(quoted)).collect::<Vec<_>>().join(" ")
}

/// Driver and clocks of a device, if `nvidia-smi` is there and speaks of the same device.
fn nvidia_smi(ordinal: usize, device: &str) -> Option<Map<String, Value>> {
    // The ordinal counts the devices that are visible to this process.
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let id = match &visible {
        Some(list) => list.split(',').nth(ordinal)?.trim().to_owned(),
        None => ordinal.to_string(),
    };
    let child = Command::new("nvidia-smi")
        .args(["--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader,nounits"])
        .args(["-i", &id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    parse_smi(&answer(child)?, device)
}

/// What a program says; `None` if it fails or takes too long.
fn answer(mut child: Child) -> Option<String> {
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) | Err(_) => {
                // It may have ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    let output = child.wait_with_output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// A line of `nvidia-smi`; a number that it does not know is left out.
fn parse_smi(line: &str, device: &str) -> Option<Map<String, Value>> {
    let mut fields = line.trim().split(',').map(str::trim);
    if fields.next()? != device {
        return None;
    }
    let mut all = Map::new();
    all.insert("driver_version".into(), json!(fields.next()?));
    for (name, text) in ["sm_clock_mhz", "max_sm_clock_mhz", "power_limit_w"].into_iter().zip(fields) {
        if let Ok(number) = text.parse::<f64>() {
            all.insert(name.into(), json!(number));
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_run_again() {
        let of = |args: &[&str]| command_line(args.iter().map(|arg| arg.to_string()));
        assert_eq!(of(&["/opt/bin/speedread", "bench", "--lengths", "1K,2K"]), "speedread bench --lengths 1K,2K");
        assert_eq!(of(&["x", "-f", "a b", "it's", ""]), r"speedread -f 'a b' 'it'\''s' ''");
    }

    #[test]
    fn clocks_are_read_or_left_out() {
        let found = parse_smi("NVIDIA H200, 580.159.04, 1980, 1980, 700.00\n", "NVIDIA H200").unwrap();
        assert_eq!(found["driver_version"], "580.159.04");
        assert_eq!((&found["sm_clock_mhz"], &found["power_limit_w"]), (&json!(1980.0), &json!(700.0)));
        let partly = parse_smi("NVIDIA H200, 580.159.04, [N/A], 1980, [N/A]", "NVIDIA H200").unwrap();
        assert!(!partly.contains_key("sm_clock_mhz") && partly["max_sm_clock_mhz"] == 1980.0, "{partly:?}");
        for (line, device) in [("", "NVIDIA H200"), ("NVIDIA A100, 580", "NVIDIA H200"), ("NVIDIA H200", "NVIDIA H200")]
        {
            assert!(parse_smi(line, device).is_none(), "{line}");
        }
    }
}
