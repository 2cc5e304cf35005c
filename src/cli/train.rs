//! `train`: fine-tunes a model directory and writes another.

mod allocator;
mod arguments;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use indicatif::{ProgressBar, ProgressStyle};

use crate::Result;
use crate::cli::warnings::Warnings;
use crate::cli::{Ending, interrupt, note, shows_progress};
use crate::model::config::TrainingDefaults;
use crate::text::Tokenizer;
use crate::train::objectives::scheduled_sampling;
use crate::train::{Ending as RunEnding, ObjectiveOptions, Observer, Places, Report, TrainOptions, Trainer};
pub(super) use arguments::Arguments;

/// The objective that the options under a heading of the help are about.
const OF_OBJECTIVES: [(&str, &str); 3] =
    [("Scheduled sampling", "scheduled-sampling"), ("Minimum risk training", "mrt"), ("Distillation", "distill")];

/// Refuses options that are about another objective than the one that was chosen: they would be without effect.
///
/// # Errors
/// As the command line's parser words it, naming both.
pub(super) fn check_objective(command: &Command, given: &ArgMatches) -> Result<(), clap::Error> {
    let chosen = given.get_raw("objective").and_then(|mut values| values.next()).unwrap_or_default();
    let foreign = command.get_arguments().find(|argument| {
        let about = OF_OBJECTIVES.iter().find(|(heading, _)| argument.get_help_heading() == Some(*heading));
        let is_given = given.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine);
        is_given && about.is_some_and(|(_, objective)| chosen != *objective)
    });
    match foreign.and_then(Arg::get_long) {
        None => Ok(()),
        Some(long) => {
            let message = format!("option {long} cannot be combined with objective {}\n", chosen.to_string_lossy());
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, message).with_cmd(command))
        }
    }
}

/// What likelihood alone does not train, said once.
const LEFT_OPEN: &str = "mle trains on gold prefixes alone: how the model goes on after its own words is left open. `beamfuse diagnose` \
                         tells whether that costs anything; --objective scheduled-sampling, the default, trains on both";

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    allocator::keep_freed_memory();
    let places = arguments.places()?;
    let defaults = arguments.model.open(TrainingDefaults::open)?;
    let options = arguments.options(defaults)?;
    let mut watcher = Watcher::new(&options, arguments.run.log_every);
    if let ObjectiveOptions::ScheduledSampling(scheduled_sampling::Options { schedule, .. }) = &options.objective {
        let (first, last) = (schedule.at(1), schedule.at(options.updates));
        watcher.note(&format!("gold is fed with probability {first:.3} at first and {last:.3} at last"));
    }
    if options.objective == ObjectiveOptions::Mle {
        watcher.note(LEFT_OPEN);
    }
    let (mut trainer, tokenizer) = arguments.model.open(|dir| {
        let trainer = Trainer::open(Places { model: dir.to_path_buf(), ..places.clone() }, options.clone())?;
        let mut tokenizer = Tokenizer::open(dir)?;
        tokenizer.set_defaults(&places.defaults)?;
        Ok((trainer, tokenizer))
    })?;
    let (pairs, skipped) = (trainer.data().pairs().len(), trainer.data().skipped());
    watcher.note(&match skipped {
        0 => format!("{pairs} pairs"),
        _ => format!("{pairs} pairs; {skipped} lines left out"),
    });
    let sources = trainer.data().pairs().iter().map(|pair| (pair.line, pair.source_text.as_str()));
    Warnings::tell(&tokenizer, sources);
    if trainer.updates_done() > 0 {
        watcher.note(&format!("continuing after update {}", trainer.updates_done()));
    }
    interrupt::listen_for("finishing the update under way");
    let ending = trainer.run(&mut watcher);
    watcher.finish();
    let ending = ending?;
    if let Some((score, update)) = trainer.best() {
        note(&format!("best validation score {score:.2} at update {update}"));
    }
    Ok(match ending {
        RunEnding::Complete => Ending::Complete,
        RunEnding::Stopped => {
            note(&format!("stopped at update {}: validation does not improve any more", trainer.updates_done()));
            Ending::Complete
        }
        RunEnding::Interrupted => {
            note(&format!(
                "state saved after update {}; the same command with --resume continues",
                trainer.updates_done()
            ));
            Ending::Interrupted
        }
    })
}

/// Shows how a run goes: a line that moves on a terminal, now and then a line elsewhere.
struct Watcher {
    bar: ProgressBar,
    every: u32,
    terminal: bool,
    /// How far it has come.
    last: Option<String>,
}

impl Watcher {
    fn new(options: &TrainOptions, every: u32) -> Self {
        let terminal = shows_progress();
        let bar = if terminal { ProgressBar::new(u64::from(options.updates)) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {eta} left") {
            bar.set_style(style);
        }
        Watcher { bar, every, terminal, last: None }
    }

    /// Takes the moving line away, and leaves the last one on a terminal.
    fn finish(&mut self) {
        self.bar.finish_and_clear();
        if let Some(line) = self.last.take().filter(|_| self.terminal) {
            note(&line);
        }
    }
}

impl Observer for Watcher {
    fn interrupted(&self) -> bool {
        interrupt::asked()
    }

    fn updated(&mut self, report: &Report) {
        let rate = report.tokens as f64 / report.seconds.max(1e-9);
        let figures: String = report.figures.iter().map(|(name, value)| format!("  {name} {value:.3}")).collect();
        let line = format!("loss {:.4}{figures}  {rate:.0} tokens/s", report.loss);
        self.bar.set_position(u64::from(report.update));
        if !self.terminal && (report.update.is_multiple_of(self.every) || report.update == report.updates) {
            note(&format!("update {}/{}  {line}", report.update, report.updates));
        }
        self.last = Some(format!("update {}/{}  {line}", report.update, report.updates));
        self.bar.set_message(line);
    }

    fn note(&mut self, line: &str) {
        self.bar.suspend(|| note(line));
    }
}
