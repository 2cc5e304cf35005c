//! What the figures were measured on, as far as the operating system says.

use serde::Serialize;

use crate::cpu::Path;

/// The machine and this process's memory.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    /// The processor's name; Linux only.
    pub cpu: Option<String>,
    /// Threads that run at once.
    pub cores: usize,
    pub arch: &'static str,
    pub os: &'static str,
    /// The path that the CPU computes on.
    pub isa: &'static str,
}

impl Machine {
    pub(super) fn this() -> Self {
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: cores(),
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
            isa: Path::current().name(),
        }
    }
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The most memory that this process has held at once, in bytes; Linux only.
pub(super) fn peak_memory() -> Option<u64> {
    let kibibytes = field("/proc/self/status", "VmHWM")?;
    Some(kibibytes.strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The first value of `name: value` in a file of such lines.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(key, value)| (key.trim(), value.trim()))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_string())
}
