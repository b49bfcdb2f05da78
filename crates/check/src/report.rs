//! What a run has found: checks that hold or don't, and figures.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use trefoil_kernels::Graphs;

use crate::Result;

/// Everything that a run has found so far. Written after every section, so that a run that is cut off has said
/// what it knew.
#[derive(Serialize)]
pub(crate) struct Report {
    version: &'static str,
    device: String,
    short: bool,
    /// Why small steps start launch by launch, where the device has failed to start one as a graph.
    graph_failure: Option<String>,
    checks: Vec<Check>,
    figures: Vec<Figure>,
    /// Sections and their seconds.
    sections: Vec<(&'static str, f64)>,
    #[serde(skip)]
    graphs: Graphs,
    #[serde(skip)]
    output: Option<PathBuf>,
}

#[derive(Serialize)]
struct Check {
    section: &'static str,
    name: String,
    held: bool,
    detail: String,
}

/// A measured number.
#[derive(Serialize)]
struct Figure {
    section: &'static str,
    name: String,
    value: f64,
    unit: &'static str,
    /// What it should reach: `≤ 1.06`.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// What a figure should reach.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Report {
    pub(crate) fn new(device: String, short: bool, graphs: Graphs, output: Option<PathBuf>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            device,
            short,
            graph_failure: None,
            checks: Vec::new(),
            figures: Vec::new(),
            sections: Vec::new(),
            graphs,
            output,
        }
    }

    /// Runs a section. One that fails is a check that does not hold, and the next ones run all the same.
    pub(crate) fn section(
        &mut self,
        name: &'static str,
        run: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        eprintln!("{name} …");
        let start = Instant::now();
        let ran = run(self);
        self.check(name, "runs to its end", ran.map(|()| String::new()));
        self.sections.push((name, start.elapsed().as_secs_f64()));
        self.graph_failure = self.graphs.failure().map(str::to_owned);
        if let Some(path) = &self.output {
            std::fs::write(path, serde_json::to_vec_pretty(self)?)?;
        }
        Ok(())
    }

    /// Notes whether something holds: `Ok` with what there is to say, or what is wrong.
    pub(crate) fn check(&mut self, section: &'static str, name: impl Into<String>, found: Result<String>) {
        let (held, detail) = match found {
            Ok(detail) => (true, detail),
            Err(wrong) => (false, whole(wrong.as_ref())),
        };
        self.checks.push(Check { section, name: name.into(), held, detail });
    }

    /// Notes a number.
    pub(crate) fn figure(
        &mut self,
        section: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: Option<Goal>,
    ) {
        let (met, goal) = match goal {
            None => (None, None),
            Some(Goal::AtMost(most)) => (Some(value <= most), Some(format!("≤ {most}"))),
            Some(Goal::AtLeast(least)) => (Some(value >= least), Some(format!("≥ {least}"))),
        };
        self.figures.push(Figure { section, name: name.into(), value, unit, goal, met });
    }

    /// Whether every check holds.
    pub(crate) fn held(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// Checks that don't hold, one a line; sums of those that do; and all figures.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("trefoil-gpu-check {} on {}\n", self.version, self.device);
        if let Some(why) = &self.graph_failure {
            // A string takes any text.
            let _ = writeln!(table, "small steps start launch by launch: {why}");
        }
        table.push('\n');
        for (section, seconds) in &self.sections {
            let of = || self.checks.iter().filter(|check| check.section == *section);
            let held = of().filter(|check| check.held).count();
            let _ = writeln!(table, "{section:<10} {held} of {} hold, {seconds:.1} s", of().count());
            for check in of().filter(|check| !check.held) {
                let _ = writeln!(table, "  FAILED {}: {}", check.name, check.detail);
            }
            for figure in self.figures.iter().filter(|figure| figure.section == *section) {
                let Figure { name, value, unit, .. } = figure;
                let goal = figure.goal.as_deref().unwrap_or_default();
                let missed = if figure.met == Some(false) { ", MISSED" } else { "" };
                let goal = if goal.is_empty() { String::new() } else { format!("  ({goal}{missed})") };
                let _ = writeln!(table, "  {name:<44} {value:>12.4} {unit}{goal}");
            }
        }
        table
    }
}

/// What is wrong, and why.
fn whole(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(said, ": {error}");
        cause = error.source();
    }
    said
}
