//! The report for people.

use std::fmt::Write;

use super::{Report, Status};

/// The report as lines: a mark, the name, what was found; below it what to do.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    let widest = report.checks.iter().map(|check| check.name.len()).max();
    let width = widest.unwrap_or(0);
    for check in &report.checks {
        let mark = match check.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark}  {:width$}  {}", check.name, check.found);
        if !check.remedy.is_empty() {
            let _ = writeln!(text, "{:1$}-> {2}", "", width + 8, check.remedy);
        }
    }
    text.push('\n');
    if let Some(engine) = &report.engine {
        let _ = writeln!(
            text,
            "Engine: {} ({} CPU): {}.",
            engine.name, engine.cpu, engine.why
        );
    }
    let failed = report
        .checks
        .iter()
        .filter(|check| check.status == Status::Fail)
        .count();
    let _ = if report.can_run_pods {
        writeln!(text, "This machine can run pods.")
    } else {
        writeln!(text, "This machine cannot run pods yet: {failed} to mend.")
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, Engine};

    #[test]
    fn marks_remedies_and_the_verdict() {
        let check = |name, status, remedy: &str| Check {
            name,
            status,
            found: "found".into(),
            remedy: remedy.into(),
        };
        let mut report = Report {
            can_run_pods: false,
            engine: Some(Engine {
                name: "qemu",
                cpu: "software",
                why: "reasons".into(),
            }),
            checks: vec![
                check("kvm", Status::Ok, ""),
                check("settings", Status::Fail, "mend it"),
            ],
        };
        assert_eq!(
            text(&report),
            "ok    kvm       found\n\
             FAIL  settings  found\n                -> mend it\n\
             \nEngine: qemu (software CPU): reasons.\n\
             This machine cannot run pods yet: 1 to mend.\n"
        );
        report.can_run_pods = true;
        assert!(text(&report).ends_with("This machine can run pods.\n"));
    }
}
