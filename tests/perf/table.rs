//! Rows of figures.

use serde_json::{Value, json};

/// One figure, and the same of what it is compared with.
pub struct Row {
    /// What was measured.
    pub name: String,
    /// "ms", "KiB", "MiB/s", ...
    pub unit: &'static str,
    /// Ours.
    pub ours: f64,
    /// The other's: its name and figure.
    pub other: Option<(&'static str, f64)>,
    /// The goal: at most, or at least.
    pub goal: Option<Goal>,
}

/// What a figure should be.
#[derive(Clone, Copy)]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than the other's.
    NoLessThanOther,
    /// No more than the other's.
    NoMoreThanOther,
}

impl Row {
    /// A figure without comparison.
    pub fn new(name: &str, unit: &'static str, ours: f64) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            ours,
            other: None,
            goal: None,
        }
    }

    /// Compared with another's.
    pub fn against(self, name: &'static str, figure: f64) -> Self {
        Self {
            other: Some((name, figure)),
            ..self
        }
    }

    /// With a goal.
    pub fn goal(self, goal: Goal) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }

    fn reached(&self) -> Option<bool> {
        let other = self.other.map(|(_, figure)| figure);
        match self.goal? {
            Goal::AtMost(most) => Some(self.ours <= most),
            Goal::NoLessThanOther => other.map(|other| self.ours >= other),
            Goal::NoMoreThanOther => other.map(|other| self.ours <= other),
        }
    }

    /// For machines.
    pub fn json(&self) -> Value {
        json!({
            "unit": self.unit, "isopod": self.ours,
            "other": self.other.map(|(name, figure)| json!({ "name": name, "figure": figure })),
            "goal_reached": self.reached(),
        })
    }
}

/// For people.
pub fn print(title: &str, rows: &[Row]) {
    println!(
        "\n{title:<36} {:>12} {:>22} {:>7}  unit",
        "isopod", "other", "ratio"
    );
    for row in rows {
        let other = row.other.map_or(String::new(), |(name, figure)| {
            format!("{name} {figure:.1}")
        });
        let ratio = row.other.map_or(String::new(), |(_, figure)| {
            format!("{:.2}", row.ours / figure)
        });
        let verdict = match (row.reached(), row.goal) {
            (Some(true), _) => "  goal reached".to_owned(),
            (Some(false), Some(Goal::AtMost(most))) => format!("  MISSED: {most}"),
            (Some(false), _) => "  MISSED".to_owned(),
            (None, _) => String::new(),
        };
        println!(
            "{:<36} {:>12.1} {other:>22} {ratio:>7}  {}{verdict}",
            row.name, row.ours, row.unit
        );
    }
}
