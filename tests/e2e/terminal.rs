//! Terminals: allocation, size, control characters.

use std::time::Duration;

use anyhow::Result;
use isopod_tests::{Bed, Case, check_eq, terminal::Terminal};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("run_has_a_terminal_of_the_right_size", run_size).smoke(),
    Case::both("resize_reaches_the_process", run_resize).under_both_containerds(),
    Case::both("exec_has_a_terminal", exec_terminal).under_both_containerds(),
    Case::both("resize_reaches_an_exec", exec_resize),
    Case::both("interrupt_character_is_a_signal", interrupt),
    Case::both("end_of_file_character_ends_a_shell", end_of_file),
    Case::both("exit_code_comes_through", exit_code),
];

const SOON: Duration = Duration::from_secs(60);

fn on_terminal(bed: &Bed, script: &str) -> Result<Terminal> {
    let command = bed
        .container()
        .command(&["--rm", "--tty"], ["sh", "-c", script])?;
    Terminal::start(&command, 91, 37)
}

fn run_size(bed: &Bed) -> Result<()> {
    let mut terminal = on_terminal(
        bed,
        "test -t 0 && test -t 1 && test -t 2 && tty; read go; stty size",
    )?;
    terminal.shows("/dev/pts/0", SOON)?;
    terminal.type_text("go\n")?;
    terminal.shows("37 91", SOON)?;
    check_eq!(terminal.finish(SOON)?, 0);
    Ok(())
}

fn run_resize(bed: &Bed) -> Result<()> {
    let script = "trap 'echo size $(stty size)' WINCH; echo ready; until read -t 0.1 word; do :; done; exit 4";
    let mut terminal = on_terminal(bed, script)?;
    terminal.shows("ready", SOON)?;
    terminal.resize(100, 50)?;
    terminal.shows("size 50 100", SOON)?;
    terminal.resize(20, 10)?;
    terminal.shows("size 10 20", SOON)?;
    terminal.type_text("word\n")?;
    check_eq!(terminal.finish(SOON)?, 4);
    Ok(())
}

fn exec_terminal(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let command = container.exec_command(&["--tty"], ["sh"]);
    let mut terminal = Terminal::start(&command, 80, 24)?;
    terminal.type_text("test -t 0 && echo is-$((40+2))-tty\n")?;
    terminal.shows("is-42-tty", SOON)?;
    terminal.type_text("exit 5\n")?;
    check_eq!(terminal.finish(SOON)?, 5);
    container.end()
}

fn exec_resize(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let command = container.exec_command(&["--tty"], ["sh"]);
    let mut terminal = Terminal::start(&command, 80, 24)?;
    terminal.type_text("echo up-$((1+1))\n")?;
    terminal.shows("up-2", SOON)?;
    terminal.resize(132, 43)?;
    // The resize travels beside the typed text: ask until it has arrived.
    terminal.type_text("until stty size | grep 132; do sleep 0.1; done\n")?;
    terminal.shows("43 132", SOON)?;
    terminal.type_text("exit\n")?;
    check_eq!(terminal.finish(SOON)?, 0);
    container.end()
}

fn interrupt(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let command = container.exec_command(&["--tty"], ["sh", "-c", "echo ready; sleep 1000"]);
    let mut terminal = Terminal::start(&command, 80, 24)?;
    terminal.shows("ready", SOON)?;
    terminal.type_text("\x03")?;
    check_eq!(terminal.finish(SOON)?, 130);
    container.end()
}

fn end_of_file(bed: &Bed) -> Result<()> {
    let mut terminal = on_terminal(bed, "echo ready; cat; echo after")?;
    terminal.shows("ready", SOON)?;
    terminal.type_text("text\n")?;
    terminal.shows("text\r\r\ntext", SOON)?;
    terminal.type_text("\x04")?;
    terminal.shows("after", SOON)?;
    check_eq!(terminal.finish(SOON)?, 0);
    Ok(())
}

fn exit_code(bed: &Bed) -> Result<()> {
    let mut terminal = on_terminal(bed, "exit 9")?;
    check_eq!(terminal.finish(SOON)?, 9);
    Ok(())
}
