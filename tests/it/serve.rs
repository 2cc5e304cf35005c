//! `beamfuse serve`: a real process, spoken to through sockets.

mod faults;
mod results;
mod server;
mod statuses;
