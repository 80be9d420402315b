//! What was measured: a table, ours against the better peer.

use crate::server::{Cost, Kind};

/// A driver that uses more than this of a core may be what was measured.
const DRIVER_MAX: f64 = 0.8;

/// Which of two figures is the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// One figure of one server.
#[derive(Debug, Clone)]
struct Figure {
    load: String,
    metric: String,
    unit: &'static str,
    better: Better,
    kind: Kind,
    value: Option<f64>,
    /// What is to be known beside it, or why there is none.
    note: String,
    driver: f64,
}

/// Every figure so far.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

/// The figures of one load and one server.
pub struct Sheet<'a> {
    report: &'a mut Report,
    load: String,
    kind: Kind,
}

impl Report {
    pub fn sheet(&mut self, load: &str, kind: Kind) -> Sheet<'_> {
        Sheet { report: self, load: load.to_owned(), kind }
    }

    /// Prints the table.
    pub fn print(&self, kinds: &[Kind]) {
        println!();
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        println!("| load | figure | {} | ours against the better peer | driver, share of a core |", names.join(" | "));
        println!("|---|---|{}---|---|", "---|".repeat(kinds.len()));
        let mut printed: Vec<(&str, &str)> = Vec::new();
        for figure in &self.figures {
            let row = (&*figure.load, &*figure.metric);
            if printed.contains(&row) {
                continue;
            }
            printed.push(row);
            let all: Vec<&Figure> = self.figures.iter().filter(|other| (&*other.load, &*other.metric) == row).collect();
            let find = |kind: Kind| all.iter().find(|figure| figure.kind == kind).copied();
            let cells: Vec<String> = kinds.iter().map(|kind| find(*kind).map_or("".to_owned(), cell)).collect();
            let drivers: Vec<String> = kinds
                .iter()
                .map(|kind| find(*kind).map_or("-".to_owned(), |figure| format!("{:.0} %", figure.driver * 100.0)))
                .collect();
            let unit = if figure.unit.is_empty() { String::new() } else { format!(", {}", figure.unit) };
            println!(
                "| {} | {}{unit} | {} | {} | {} |",
                figure.load,
                figure.metric,
                cells.join(" | "),
                ratio(&all),
                drivers.join(", ")
            );
        }
    }
}

impl Sheet<'_> {
    /// Notes a figure of a stretch.
    pub fn figure(&mut self, metric: &str, unit: &'static str, better: Better, value: f64, cost: &Cost) {
        self.noted(metric, unit, better, Some(value), "", cost.driver);
    }

    /// Notes a figure that does not depend on how fast the driver is.
    pub fn size(&mut self, metric: &str, unit: &'static str, value: f64) {
        self.noted(metric, unit, Better::Lower, Some(value), "", 0.0);
    }

    /// Notes a figure with a remark, or why there is none.
    pub fn noted(
        &mut self,
        metric: &str,
        unit: &'static str,
        better: Better,
        value: Option<f64>,
        note: &str,
        driver: f64,
    ) {
        let (load, kind) = (self.load.clone(), self.kind);
        let figure = Figure { load, metric: metric.into(), unit, better, kind, value, note: note.into(), driver };
        println!("  {}: {}: {metric}: {} {unit}", figure.load, kind.name(), cell(&figure));
        self.report.figures.push(figure);
    }

    /// Notes that the load did not come to its end.
    pub fn failed(&mut self, why: &str) {
        self.noted("the load", "", Better::Lower, None, why, 0.0);
    }
}

fn counts(figure: &Figure) -> Option<f64> {
    figure.value.filter(|_| figure.driver <= DRIVER_MAX)
}

fn cell(figure: &Figure) -> String {
    let note = if figure.note.is_empty() { String::new() } else { format!(" ({})", figure.note) };
    match figure.value {
        None => figure.note.clone(),
        Some(value) if figure.driver > DRIVER_MAX => format!("no result: driver; {}{note}", number(value)),
        Some(value) => format!("{}{note}", number(value)),
    }
}

fn ratio(figures: &[&Figure]) -> String {
    let ours = figures.iter().find(|figure| figure.kind == Kind::Tidelog).and_then(|figure| counts(figure));
    let peers = figures.iter().filter(|figure| figure.kind != Kind::Tidelog).filter_map(|figure| counts(figure));
    let better = figures[0].better;
    let best = match better {
        Better::Lower => peers.min_by(f64::total_cmp),
        Better::Higher => peers.max_by(f64::total_cmp),
    };
    match (ours, best) {
        (Some(ours), Some(best)) if ours > 0.0 && best > 0.0 => match better {
            Better::Lower => format!("{} x less", number(best / ours)),
            Better::Higher => format!("{} x more", number(ours / best)),
        },
        _ => "-".to_owned(),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0..0.1 => format!("{value:.4}"),
        0.1..1.0 => format!("{value:.3}"),
        1.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
