//! Batch jobs: a directory of inputs becomes a directory of parts, each of which is committed by itself.
//!
//! The protocol of a part, from one input file or piece of it:
//!
//! 1. its rows are written aside, under the part's name with `.partial` behind it;
//! 2. the [`Record`], which names the digests of input, output and model, all options and the counts of rows, is written aside;
//! 3. the part reaches the disk and gets its name, then the record does.
//!
//! So a part with its record is whole, whatever was killed and when; a part whose record is still aside is whole if its digest is
//! the one that stands there; everything else is made anew. Records lie in the directory `.beamfuse` of the output.
//!
//! The command line and other programs commit through [`Job`] alone.

mod compress;
mod digest;
mod job;
mod plan;
mod record;
mod verify;

pub use compress::{Compression, Compressor};
pub use digest::{digest_bytes, digest_file, digest_model, stamp_file, stamp_model};
pub use job::{Job, Part, State};
pub use plan::{Shard, Unit, is_many, plan};
pub use record::{Counts, Input, Output, Record, difference};
pub use verify::{Problem, verify};

/// The directory of an output in which its records lie.
pub const RECORDS: &str = ".beamfuse";
