//! `beamfuse serve`: a real process, spoken to through sockets.

mod access;
mod faults;
mod interfaces;
mod languages;
mod results;
mod server;
mod statuses;
mod streams;
