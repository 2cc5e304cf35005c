//! What `validate` found, as a table and for JSON.

use serde::Serialize;

use crate::backend::Dtype;

/// One kernel in one storage type.
#[derive(Clone, Debug, Serialize)]
pub struct KernelRow {
    /// The op.
    pub op: &'static str,
    /// Which kernel of the op.
    pub variant: &'static str,
    /// Storage type.
    pub dtype: &'static str,
    /// Cases run.
    pub cases: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Largest absolute difference from the reference.
    pub max_abs: f64,
    /// Largest difference in units of the storage type's last place.
    pub max_ulp: f64,
    /// Time of all launches, each waited for.
    pub seconds: f64,
    /// Most bytes per second of any launch, in units of 10^9; on an emulated device it says nothing about a GPU.
    #[serde(skip)]
    pub best_rate: f64,
    /// The same, where the device is a real one.
    pub gb_per_second: Option<f64>,
    /// The first failures in words.
    pub failures: Vec<String>,
}

impl KernelRow {
    pub(super) fn new(op: &'static str, variant: &'static str, dtype: Dtype) -> Self {
        KernelRow {
            op,
            variant,
            dtype: dtype.name(),
            cases: 0,
            failed: 0,
            max_abs: 0.0,
            max_ulp: 0.0,
            seconds: 0.0,
            best_rate: 0.0,
            gb_per_second: None,
            failures: Vec::new(),
        }
    }
}

/// A check over the model's own shapes or whole decodes.
#[derive(Clone, Debug, Serialize)]
pub struct CheckRow {
    /// What was checked.
    pub name: String,
    /// Rows, steps or operations compared.
    pub compared: usize,
    /// What was compared, as in "rows".
    pub unit: &'static str,
    /// Time.
    pub seconds: f64,
    /// What is remarkable without being wrong.
    pub notes: Vec<String>,
    /// What is wrong.
    pub failures: Vec<String>,
    /// How the device computed the matrix products, where it has more ways than one.
    pub algorithms: Vec<String>,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// This crate's version.
    pub version: &'static str,
    /// The device's name.
    pub device: String,
    /// Whether it is a GPU.
    pub is_real: bool,
    /// Whether the full grid was run.
    pub full: bool,
    /// Which part of the cases was run, as in "2/4".
    pub shard: Option<String>,
    /// Whether the checks came to their end.
    pub complete: bool,
    /// How the device computed the kernels' matrix products, where it has more ways than one.
    pub algorithms: Vec<String>,
    /// By kernel.
    pub kernels: Vec<KernelRow>,
    /// By check of the whole model.
    pub checks: Vec<CheckRow>,
}

impl Report {
    /// Of a device, with nothing checked yet.
    pub fn new(device: String, is_real: bool, full: bool) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Report {
            version,
            device,
            is_real,
            full,
            shard: None,
            complete: false,
            algorithms: Vec::new(),
            kernels: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// The ops and checks that failed, each once.
    pub fn failed(&self) -> Vec<String> {
        let kernels = self.kernels.iter().filter(|row| row.failed > 0).map(|row| row.op.to_owned());
        let checks = self.checks.iter().filter(|check| !check.failures.is_empty()).map(|check| check.name.clone());
        let mut failed: Vec<String> = kernels.chain(checks).collect();
        failed.dedup();
        failed
    }
}

/// The table's head.
pub const HEAD: &str =
    "op                  variant      dtype  cases     max abs     max ulp      time     GB/s  verdict";

/// One line of the table.
pub fn line(row: &KernelRow) -> String {
    let KernelRow { op, variant, dtype, cases, max_abs, max_ulp, .. } = row;
    let rate = row.gb_per_second.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
    let verdict = match row.failed {
        0 => "ok".to_owned(),
        failed => format!("FAILED {failed}"),
    };
    let time = format!("{:.1} ms", row.seconds * 1e3);
    format!(
        "{op:<18}  {variant:<11}  {dtype:<5}  {cases:>5}  {max_abs:>10.3e}  {max_ulp:>10.1}  {time:>8}  {rate:>7}  {verdict}"
    )
}

/// The lines of a check of the whole model.
pub fn check_lines(check: &CheckRow) -> Vec<String> {
    let CheckRow { name, compared, unit, seconds, .. } = check;
    let verdict = if check.failures.is_empty() { "ok" } else { "FAILED" };
    let mut lines = vec![format!("{name}: {compared} {unit} in {seconds:.1} s  {verdict}")];
    lines.extend(check.notes.iter().map(|note| format!("  note: {note}")));
    lines.extend(check.failures.iter().map(|failure| format!("  {failure}")));
    lines
}
