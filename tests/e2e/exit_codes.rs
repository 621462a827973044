//! How the end of a process is told.

use anyhow::Result;
use isopod_tests::{Bed, Case, check_contains, check_eq, image::NOT_EXECUTABLE};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("zero", zero).under_both_containerds(),
    Case::both("one", one).under_both_containerds(),
    Case::both("of_a_shell_that_finds_no_command", shell_not_found),
    Case::both("of_a_shell_that_may_not_execute", shell_not_executable),
    Case::both("of_a_killed_process", killed),
    Case::both("every_number", every_number),
    Case::both("command_not_found", not_found).under_both_containerds(),
    Case::both("command_not_executable", not_executable),
    Case::both("exec_command_not_found", exec_not_found),
    Case::both("exec_command_not_executable", exec_not_executable),
    Case::both("exec_passes_the_code_on", exec_code)
        .under_both_containerds()
        .smoke(),
];

fn zero(bed: &Bed) -> Result<()> {
    bed.container().run(["true"])?.ok().map(drop)
}

fn one(bed: &Bed) -> Result<()> {
    bed.container().run(["false"])?.code_is(1).map(drop)
}

fn shell_not_found(bed: &Bed) -> Result<()> {
    bed.container()
        .run(["sh", "-c", "no-such-command"])?
        .code_is(127)
        .map(drop)
}

fn shell_not_executable(bed: &Bed) -> Result<()> {
    bed.container()
        .run(["sh", "-c", NOT_EXECUTABLE])?
        .code_is(126)
        .map(drop)
}

fn killed(bed: &Bed) -> Result<()> {
    // PID 1 of a pid namespace ignores its own SIGKILL: a child must be the one that dies.
    let run = bed
        .container()
        .run(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])?;
    check_eq!(run.code, 137);
    let mut events = bed.events()?;
    let container = bed.container().sleeping()?;
    container.kill("KILL")?;
    let exit = events.wait("/tasks/exit", |event| event.text("id") == container.id)?;
    check_eq!(exit.number("exit_status"), 137);
    container.becomes("STOPPED")?;
    check_eq!(container.delete_task()?, 137, "the code of a deleted task");
    container.remove()
}

fn every_number(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    for code in [2, 64, 125, 126, 127, 128, 130, 200, 255] {
        container
            .exec(["sh", "-c", &format!("exit {code}")])?
            .code_is(code)?;
    }
    container.end()
}

fn not_found(bed: &Bed) -> Result<()> {
    let run = bed.container();
    let finished = run.run(["no-such-command"])?.code_is(1)?;
    check_contains!(finished.err(), "no-such-command");
    check_contains!(finished.err(), "not found");
    Ok(())
}

fn not_executable(bed: &Bed) -> Result<()> {
    let finished = bed.container().run([NOT_EXECUTABLE])?.code_is(1)?;
    check_contains!(finished.err(), NOT_EXECUTABLE);
    check_contains!(finished.err(), "permission denied");
    Ok(())
}

fn exec_not_found(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let finished = container.exec(["no-such-command"])?.code_is(1)?;
    check_contains!(finished.err(), "no-such-command");
    check_contains!(finished.err(), "not found");
    container.exec(["true"])?.ok()?;
    container.end()
}

fn exec_not_executable(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let finished = container.exec([NOT_EXECUTABLE])?.code_is(1)?;
    check_contains!(finished.err(), NOT_EXECUTABLE);
    check_contains!(finished.err(), "permission denied");
    container.exec(["true"])?.ok()?;
    container.end()
}

fn exec_code(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    container.exec(["sh", "-c", "exit 7"])?.code_is(7)?;
    container.exec(["sh", "-c", "kill -9 $$"])?.code_is(137)?;
    container.exec(["sh", "-c", "kill -15 $$"])?.code_is(143)?;
    container.end()
}
